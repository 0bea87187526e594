import datetime as dt
import decimal
import enum
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dask_fleet.model.errors import BadJSON, InvalidParameters
from dask_fleet.model.jobs import Policy
from dask_fleet.model.manifest import EndpointManifest
from dask_fleet.services.endpoint import Endpoint
from dask_fleet.services.requests import RequestValidator


def validator(function: Callable[..., Any]) -> RequestValidator:
    return RequestValidator(Endpoint("f", function, Policy()).manifest())


def of_schema(schema: dict[str, Any]) -> RequestValidator:
    return RequestValidator(EndpointManifest(name="f", doc="", parameters=schema, order=(), returns="any"))


class Colour(enum.Enum):
    RED = "red"


class Window(BaseModel):
    days: int = 7
    weights: list[float] = [1]


class Tree(BaseModel):
    weight: float = 0
    children: list["Tree"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: float = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    age: int = 1


def whole(n: int) -> None: ...
def real(x: float) -> None: ...
def anything(x: Any) -> None: ...


def rich(
    month: Annotated[int, Field(ge=1, le=12)],
    origin: Literal["EWR", "JFK", "LGA"] | None = None,
    window: Window = Window(),  # noqa: B008
    tree: Tree | None = None,
    pet: Cat | Dog | None = None,
    pair: tuple[float, int] = (0.5, 1),
    shares: dict[str, float] = {},  # noqa: B006
    level: Literal[1, 2] = 1,
    mixed: int | str | float = 0,  # noqa: PYI041 - which branch comes first matters
    when: dt.datetime | None = None,
    amount: decimal.Decimal | None = None,
) -> None: ...


FULL = {
    "amount": None, "level": 1, "mixed": 0, "month": 1, "origin": None, "pair": [0.5, 1], "pet": None, "shares": {},
    "tree": None, "when": None, "window": {"days": 7, "weights": [1.0]},
}  # fmt: skip


def canonical(function: Callable[..., Any], body: str) -> str:
    return validator(function).canonical(body.encode()).decode()


def test_defaults_are_filled_in() -> None:
    assert json.loads(canonical(rich, '{"month":1}')) == FULL
    assert canonical(rich, '{"month":1}') == json.dumps(FULL, separators=(",", ":"))
    assert validator(rich).canonical(json.dumps(FULL).encode()) == validator(rich).canonical(b'{"month":1.0}')


@pytest.mark.parametrize(
    ("body", "member", "spelling"),
    [
        ('{"month":1,"window":{}}', "window", {"days": 7, "weights": [1.0]}),
        ('{"month":1,"tree":{"children":[{},{"weight":2}]}}', "tree",
         {"children": [{"children": [], "weight": 0.0}, {"children": [], "weight": 2.0}], "weight": 0.0}),
        ('{"month":1,"pet":{"kind":"cat"}}', "pet", {"kind": "cat", "lives": 9.0}),
        ('{"month":1,"pet":{"kind":"dog","age":2.0}}', "pet", {"age": 2, "kind": "dog"}),
        ('{"month":1,"pair":[1,1.0]}', "pair", [1.0, 1]),
        ('{"month":1,"shares":{"b":1,"a":2}}', "shares", {"a": 2.0, "b": 1.0}),
        ('{"month":1,"level":2.0}', "level", 2),
        ('{"month":1,"mixed":2.0}', "mixed", 2),
        ('{"month":1,"mixed":2.5}', "mixed", 2.5),
        ('{"month":1,"mixed":"2"}', "mixed", "2"),
        ('{"month":1,"amount":1}', "amount", 1.0),
        ('{"month":1,"amount":9007199254740993}', "amount", 9007199254740993),
        ('{"month":1,"when":"2020-01-01T00:00:00+01:00"}', "when", "2020-01-01T00:00:00+01:00"),
    ],
)  # fmt: skip
def test_forms_inside(body: str, member: str, spelling: object) -> None:
    # Compared as text, because Python holds 1 and 1.0 for equal.
    found = json.loads(canonical(rich, body))[member]
    assert json.dumps(found, sort_keys=True) == json.dumps(spelling, sort_keys=True)


def test_numbers_are_exact_and_have_one_form() -> None:
    assert canonical(whole, '{"n":5.0}') == canonical(whole, '{"n": 5}') == '{"n":5}'
    assert canonical(whole, '{"n":9007199254740992}') != canonical(whole, '{"n":9007199254740993}')
    assert canonical(whole, '{"n":%s}' % ("9" * 999)) == '{"n":%s}' % ("9" * 999)
    assert canonical(whole, '{"n":1e3}') == '{"n":1000}'
    assert canonical(real, '{"x":1}') == canonical(real, '{"x":1.0}') == canonical(real, '{"x":10e-1}') == '{"x":1.0}'
    assert canonical(real, '{"x":-0.0}') == canonical(real, '{"x":-0}') == canonical(real, '{"x":0}') == '{"x":0.0}'
    assert canonical(anything, '{"x":1}') != canonical(anything, '{"x":1.0}'), "without a type both forms have a meaning"


def test_no_body_is_an_empty_object() -> None:
    def nothing() -> None: ...

    assert validator(nothing).canonical(b"") == validator(nothing).canonical(b" {} ") == b"{}"


def test_schemas_that_refer_to_themselves_and_rare_keywords() -> None:
    number = {"type": "number"}
    schema = {
        "type": "object",
        "properties": {
            "self": {"$ref": "#"},
            "all": {"allOf": [{"properties": {"x": number}}, {"properties": {"y": {**number, "default": 1}}}]},
            "one": {"oneOf": [{"type": "string"}, {"type": "object", "properties": {"z": {**number, "default": 1}}}]},
            "any": True,
            "constant": {"const": 1},
        },
        "patternProperties": {"^n_": {"type": "number"}},
    }  # fmt: skip
    body = b'{"self":{"n_a":1,"self":{"n_b":2}},"all":{"x":1},"one":{},"any":1,"constant":1.0}'
    assert of_schema(schema).canonical(body) == (
        b'{"all":{"x":1.0,"y":1.0},"any":1,"constant":1,"one":{"z":1.0},"self":{"n_a":1.0,"self":{"n_b":2.0}}}'
    )


def test_one_request_leaves_nothing_behind_for_the_next() -> None:
    check = validator(rich)
    default = check.canonical(b'{"month":1}')
    check.canonical(b'{"month":1,"window":{"weights":[5]},"pair":[2,2],"shares":{"a":1},"tree":{"children":[{}]}}')
    assert check.canonical(b'{"month":1}') == default
    assert validator(rich).canonical(b'{"month":1,"window":{}}') == default


windows = st.fixed_dictionaries(
    {}, optional={"days": st.integers(), "weights": st.lists(st.integers() | st.floats(-1e9, 1e9))}
)
trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.fixed_dictionaries({}, optional={"weight": st.integers(-(2**60), 2**60)}),
    lambda inner: st.fixed_dictionaries({}, optional={"children": st.lists(inner, max_size=3)}),
    max_leaves=5,
)
requests = st.fixed_dictionaries(
    {"month": st.integers(1, 12)},
    optional={
        "origin": st.sampled_from(["EWR", None]),
        "window": windows,
        "tree": trees,
        "pet": st.sampled_from([{"kind": "cat"}, {"kind": "dog", "age": 3}, None]),
        "pair": st.tuples(st.integers(-5, 5), st.integers()).map(list),
        "shares": st.dictionaries(st.text(max_size=3).filter(lambda key: "\0" not in key), st.integers(-3, 3), max_size=3),
        "level": st.sampled_from([1, 2]),
        "mixed": st.integers() | st.floats(-9, 9) | st.just("a"),
    },
)


def rewritten(value: Any, *, floats: bool) -> Any:
    """Ask for the same in another way: names in another order, and where a number stands, its other spelling."""
    if isinstance(value, dict):
        return {key: rewritten(value[key], floats=floats) for key in reversed(list(value))}
    if isinstance(value, list):
        return [rewritten(item, floats=floats) for item in value]
    if floats and type(value) is int and int(float(value)) == value:
        return float(value)
    return value


rich_validator = validator(rich)
rich_endpoint = Endpoint("rich", rich, Policy())


@settings(deadline=None)
@given(requests)
def test_one_request_has_one_canonical_form(request_: dict[str, Any]) -> None:
    found = rich_validator.canonical(json.dumps(request_).encode())
    assert rich_validator.canonical(found) == found, "idempotent"
    assert rich_validator.canonical(json.dumps(rewritten(request_, floats=False), indent=1).encode()) == found
    assert rich_validator.canonical(json.dumps(rewritten(request_, floats=True)).encode()) == found
    # What the worker makes of the canonical form is what it would make of the request itself.
    assert rich_endpoint.call_arguments(found) == rich_endpoint.call_arguments(json.dumps(request_).encode())


# ---------------------------------------------------------------- refusals


def errors_of(function: Callable[..., Any], body: bytes) -> dict[str, tuple[str, str]]:
    with pytest.raises(InvalidParameters) as caught:
        validator(function).canonical(body)
    errors = caught.value.extra["errors"]
    json.dumps(errors).encode()
    assert all(set(error) == {"loc", "msg", "type"} for error in errors)
    return {".".join(map(str, error["loc"])): (error["type"], error["msg"]) for error in errors}


def test_every_wrong_field_is_named() -> None:
    body = {
        "month": 13, "origin": "XXX", "window": {"days": "x", "weights": [1, "y"]}, "tree": {"children": [{"weight": []}]},
        "pair": [1], "shares": {"a": None}, "level": 3, "mixed": [], "when": "2020-01-01", "other": 1, "another": 2,
    }  # fmt: skip
    found = errors_of(rich, json.dumps(body).encode())
    assert found == {
        "month": ("maximum", "must be at most 12"),
        "origin": ("enum", 'must be "EWR", "JFK" or "LGA"'),
        "window.days": ("type", "must be an integer"),
        "window.weights.1": ("type", "must be a number"),
        "tree.children.0.weight": ("type", "must be a number"),
        "pair": ("minItems", "must have at least 2 items"),
        "shares.a": ("type", "must be a number"),
        "level": ("enum", "must be 1 or 2"),
        "mixed": ("type", "must be an integer, a string or a number"),
        "when": ("format", "must be a time with its offset, such as 2026-01-31T12:00:00Z (RFC 3339)"),
        "other": ("unexpected", "is not a parameter"),
        "another": ("unexpected", "is not a parameter"),
    }


def test_missing_parameters_and_other_bodies() -> None:
    assert errors_of(rich, b"") == {"month": ("required", "is required")}
    for body in (b"[]", b"5", b'"x"', b"null"):
        assert errors_of(rich, body) == {"": ("type", "must be an object")}
    with pytest.raises(InvalidParameters, match=r"^month: is required$"):
        validator(rich).canonical(b"{}")
    with pytest.raises(InvalidParameters, match=r"^\(the whole body\): must be an object$"):
        validator(rich).canonical(b"[]")


def test_a_number_that_no_double_holds() -> None:
    assert errors_of(real, b'{"x":1%s}' % (b"0" * 400))["x"][0] == "maximum"
    found = errors_of(rich, b'{"month":1,"tree":{"children":[{},{"weight":1%s}]}}' % (b"0" * 400))
    assert list(found) == ["tree.children.1.weight"]
    assert validator(whole).canonical(b'{"n":1%s}' % (b"0" * 400))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "1e400"])
def test_numbers_that_json_lacks_are_bad_json(word: str) -> None:
    with pytest.raises(BadJSON):
        validator(real).canonical(b'{"x":%s}' % word.encode())
    assert errors_of(real, b'{"x":"%s"}' % word.encode())["x"] == ("type", "must be a number")


def numbers(n: list[int] | None = None, m: list[Window] = []) -> None: ...  # noqa: B006


@pytest.mark.parametrize(
    "body",
    [
        b'{"n":[' + b'"x",' * 99_000 + b'"x"]}',
        b'{"m":[' + b'{"days":"x"},' * 49_000 + b"1]}",
        b"{" + b",".join(b'"x%d":1' % number for number in range(49_000)) + b"}",
        b'{"n":"' + b"x" * 1_000_000 + b'"}',
        b'{"m":[' + b"1," * 500 + b'{"days":"x"}]}',
    ],
    ids=["items", "objects", "names", "text", "deep"],
)
def test_refusals_of_large_bodies_are_bounded(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidParameters) as caught:
        validator(numbers).canonical(body)
    # Asking the compiled validator for all errors takes more than a second for these.
    assert time.process_time() - started < 0.7
    errors = caught.value.extra["errors"]
    assert 1 <= len(errors) <= 100
    assert len(json.dumps(errors)) < 30_000
    assert len(caught.value.detail) < 1_000


def test_large_values_still_name_the_field_inside() -> None:
    body = {"n": [*range(5_000), "x"], "m": [{"days": 1}] * 500 + [{"days": "y", "weights": [None]}]}
    assert errors_of(numbers, json.dumps(body).encode()) == {
        "n.5000": ("type", "must be an integer"),
        "m.500.days": ("type", "must be an integer"),
        "m.500.weights.0": ("type", "must be a number"),
    }


def words(text: Annotated[str, Field(pattern=r"^(a+)+$", max_length=10_000)]) -> None: ...


def test_a_pattern_cannot_be_made_to_run_for_ever() -> None:
    started = time.process_time()
    assert list(errors_of(words, b'{"text":"' + b"a" * 5_000 + b'!"}')) == ["text"]
    assert time.process_time() - started < 0.5


def constrained(
    a: Annotated[int, Field(gt=1, lt=5)],
    b: Annotated[str, Field(min_length=2, max_length=3, pattern="^x")],
    c: Annotated[list[int], Field(min_length=1, max_length=2)],
    d: Annotated[int, Field(multiple_of=3)],
    e: set[int],
    f: Colour,
    g: bool,
) -> None: ...


def test_words_of_all_constraints() -> None:
    low = {"a": 1, "b": "", "c": [], "d": 4, "e": [1, 1], "f": "blue", "g": 1}
    assert {name: msg for name, (_, msg) in errors_of(constrained, json.dumps(low).encode()).items()} == {
        "a": "must be more than 1",
        "b": "must match the pattern ^x",
        "c": "must have at least 1 item",
        "d": "must be a multiple of 3",
        "e": "must not have an item twice",
        "f": 'must be "red"',
        "g": "must be true or false",
    }
    high = {"a": 5, "b": "xxxx", "c": [1, 2, 3], "d": 3, "e": [], "f": "red", "g": True}
    assert {name: msg for name, (_, msg) in errors_of(constrained, json.dumps(high).encode()).items()} == {
        "a": "must be less than 5",
        "b": "must have at most 3 characters",
        "c": "must have at most 2 items",
    }
