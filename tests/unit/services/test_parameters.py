from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import numpy as np
import pandas as pd
import pytest
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator
from typing_extensions import TypedDict

from dask_fleet.model.errors import InvalidParameters, ServiceDefinitionError
from dask_fleet.model.jobs import Policy
from dask_fleet.services.endpoint import Endpoint
from dask_fleet.services.parameters import compile_parameters

if TYPE_CHECKING:
    from fractions import Fraction


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Window(BaseModel):
    start: dt.date
    days: Annotated[int, Field(ge=1)] = 7


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Options(TypedDict, total=False):
    deep: bool


def everything(
    month: Annotated[int, Field(ge=1, le=12, description="Of the year.")],
    window: Window,
    origin: Literal["EWR", "JFK", "LGA"] | None = None,
    colour: Colour = Colour.RED,
    points: list[Point] = [],  # noqa: B006
    tree: Optional[Tree] = None,  # noqa: UP045
    ids: tuple[uuid.UUID, ...] = (),
    share: decimal.Decimal = decimal.Decimal("0.5"),
    weights: dict[str, float] | None = None,
    pair: tuple[int, str] = (1, "a"),
    tags: set[str] = {"b", "a", "c"},  # noqa: B006
    options: Options = {},  # noqa: B006
    anything: Any = None,
    *,
    since: dt.date = dt.date(2013, 1, 1),
    json: str = "reserved by pydantic",
    copy: bool = False,
    model_config: float = 1,
    _hidden: int = 5,
) -> None:
    """Take everything."""


def endpoint(function: Callable[..., Any]) -> Endpoint:
    return Endpoint(function.__name__.strip("_").lower(), function, Policy())


def test_the_schema_of_everything() -> None:
    manifest = endpoint(everything).manifest()
    schema = manifest.parameters
    assert manifest.order == tuple(name for name in everything.__annotations__ if name != "return")
    assert list(schema["properties"]) == list(manifest.order)
    assert schema["required"] == ["month", "window"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["month"] == {"type": "integer", "minimum": 1, "maximum": 12, "description": "Of the year."}
    defaults = {name: prop["default"] for name, prop in schema["properties"].items() if "default" in prop}
    assert defaults == {
        "origin": None, "colour": "red", "points": [], "tree": None, "ids": [], "share": "0.5", "weights": None,
        "pair": [1, "a"], "tags": ["a", "b", "c"], "options": {}, "anything": None, "since": "2013-01-01",
        "json": "reserved by pydantic", "copy": False, "model_config": 1.0, "_hidden": 5,
    }  # fmt: skip
    assert "title" not in schema
    json.dumps(schema, allow_nan=False)


def test_arguments_arrive_as_their_types() -> None:
    body = {
        "month": 3, "window": {"start": "2013-01-05"}, "points": [{"x": 1}], "colour": "blue",
        "tree": {"value": 1, "children": [{"value": 2}]}, "ids": [str(uuid.UUID(int=1))], "tags": ["a", "a"], "_hidden": 6,
    }  # fmt: skip
    found = endpoint(everything).call_arguments(json.dumps(body).encode())
    assert found["window"] == Window(start=dt.date(2013, 1, 5), days=7)
    assert found["points"] == [Point(1.0, 0.0)]
    assert found["colour"] is Colour.BLUE
    assert found["tree"] == Tree(value=1, children=[Tree(value=2)])
    assert found["ids"] == (uuid.UUID(int=1),)
    assert found["share"] == decimal.Decimal("0.5")
    assert found["tags"] == {"a"}
    assert found["since"] == dt.date(2013, 1, 1)
    assert found["json"] == "reserved by pydantic"
    assert found["_hidden"] == 6
    assert list(found) == list(endpoint(everything).manifest().order)
    everything(**found)


def test_wrong_arguments_name_each_field_without_echoing_values() -> None:
    body = {"month": 13, "window": {"start": "x" * 10_000}, "other": 1}
    with pytest.raises(InvalidParameters) as caught:
        endpoint(everything).call_arguments(json.dumps(body).encode())
    errors = caught.value.extra["errors"]
    assert [error["loc"] for error in errors] == [["month"], ["window", "start"], ["other"]]
    assert all(set(error) == {"loc", "msg", "type"} for error in errors)
    assert len(json.dumps(errors)) < 1000
    assert "month: " in caught.value.detail


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


def halve(n: Annotated[int, AfterValidator(even)]) -> int:
    return n // 2


def test_validators_in_python_run_with_the_arguments() -> None:
    assert endpoint(halve).call_arguments(b'{"n":4}') == {"n": 4}
    with pytest.raises(InvalidParameters, match="n: Value error, must be even"):
        endpoint(halve).call_arguments(b'{"n":3}')


def test_no_parameters() -> None:
    def nothing() -> int:
        return 1

    manifest = endpoint(nothing).manifest()
    assert manifest.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert endpoint(nothing).call_arguments(b"{}") == {}


def test_decorated_functions_keep_their_signature() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return inner

    assert endpoint(logged(everything)).manifest().order == endpoint(everything).manifest().order


def test_names_defined_after_the_function_are_known_in_time() -> None:
    assert endpoint(uses_later).call_arguments(b'{"later":{"a":1}}')["later"].a == 1


def uses_later(later: Later) -> None: ...


class Later(BaseModel):
    a: int


# ---------------------------------------------------------------- what a manifest cannot express


def missing(a, b: int) -> None: ...  # type: ignore[no-untyped-def]
def starred(*numbers: int) -> None: ...
def double_starred(**options: int) -> None: ...
def positional(a: int, /) -> None: ...
def array(a: np.ndarray) -> None: ...  # type: ignore[type-arg]
def frame(a: pd.DataFrame) -> None: ...
def function(a: Callable[[int], int]) -> None: ...
def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def for_checkers_only(a: Fraction) -> None: ...
def broken(a: 1 / 0) -> None: ...  # type: ignore[valid-type]
def field_as_default(a: int = Field(default=3, ge=1)) -> None: ...
def field_with_default(a: Annotated[int, Field(default=3)]) -> None: ...
def field_with_factory(a: Annotated[list[int], Field(default_factory=list)]) -> None: ...
def field_with_alias(a: Annotated[int, Field(alias="b")]) -> None: ...
def nan_default(a: float = float("nan")) -> None: ...
def nan_inside(a: list[float] = [float("nan")]) -> None: ...  # noqa: B006
def object_default(a: Any = object()) -> None: ...  # noqa: B008
def wrong_default(a: int = "x") -> None: ...  # type: ignore[assignment]
def out_of_range(a: Annotated[int, Field(ge=5)] = 3) -> None: ...
def naive_time(a: dt.datetime = dt.datetime(2020, 1, 1)) -> None: ...  # noqa: DTZ001
def yields(a: int): yield a  # type: ignore[no-untyped-def]
def bad_pattern(a: Annotated[str, Field(pattern="(")]) -> None: ...


def needs_python(a: Annotated[int, PlainValidator(lambda value: value)]) -> None: ...
def model_with_factory(a: Nested) -> None: ...
def union_with_factory(a: list[Nested] | int | None = None) -> None: ...
def dataclass_with_factory(a: WithFactory) -> None: ...


class Inner(BaseModel):
    names: list[str] = Field(default_factory=list)


class Nested(BaseModel):
    inner: dict[str, Inner | None] = {}


@dataclasses.dataclass
class WithFactory:
    numbers: list[int] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (missing, r"parameter 'a': it has no annotation: write its type, such as a: int"),
        (starred, r"parameter '\*numbers': .*take a list"),
        (double_starred, r"parameter '\*\*options': .*take one mapping"),
        (positional, r"parameter 'a': .*remove the '/'"),
        (array, r"parameter 'a': .*ndarray.*as lists"),
        (frame, r"parameter 'a': .*DataFrame.*as lists"),
        (function, r"parameter 'a': JSON cannot express its type"),
        (unknown, r"parameter 'a': .*'Nowhere' is unknown.*import it in the module"),
        (for_checkers_only, r"parameter 'a': .*not only under TYPE_CHECKING"),
        (broken, r"parameter 'a': .*cannot be evaluated"),
        (field_as_default, r"parameter 'a': .*write a: Annotated\[<type>, Field"),
        (field_with_default, r"parameter 'a': .*write a: … = <default>"),
        (field_with_factory, r"parameter 'a': a manifest cannot express default_factory"),
        (field_with_alias, r"parameter 'a': .*rename the parameter"),
        (nan_default, r"parameter 'a': its default nan is not JSON: use None"),
        (nan_inside, r"parameter 'a': .*\[nan\] has no JSON form"),
        (object_default, r"parameter 'a': a manifest cannot express it"),
        (wrong_default, r"parameter 'a': its default 'x' does not fit its own type"),
        (out_of_range, r"parameter 'a': its default 3 does not fit its own type"),
        (naive_time, r"parameter 'a': its default .* does not fit.*tzinfo"),
        (yields, r"it yields; a job has one result: return a list"),
        (bad_pattern, r"parameter 'a': "),
        (model_with_factory, r"parameter 'a': a manifest cannot express default_factory \(in Inner\.names\)"),
        (union_with_factory, r"parameter 'a': a manifest cannot express default_factory \(in Inner\.names\)"),
        (dataclass_with_factory, r"parameter 'a': a manifest cannot express default_factory \(in WithFactory\.numbers\)"),
    ],
)
def test_what_a_manifest_cannot_express_names_place_and_cure(function: Callable[..., Any], message: str) -> None:
    whole = rf"test_parameters\.py:\d+: {function.__name__}\(\).*{message}"
    with pytest.raises(ServiceDefinitionError, match=whole) as caught:
        compile_parameters(function)
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 600


def test_a_validator_in_python_may_leave_the_schema_open() -> None:
    assert compile_parameters(needs_python).schema["properties"]["a"] == {}

    def before(a: Annotated[int, BeforeValidator(lambda value: value)]) -> None: ...

    assert compile_parameters(before).schema["properties"]["a"] == {"type": "integer"}
