"""A signature becomes a pydantic model (for the worker) and a JSON Schema (for everyone else)."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, get_args, get_origin

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import PydanticSerializationError, SchemaError, to_jsonable_python

from dask_fleet.model.canonical import canonical_bytes
from dask_fleet.model.errors import ServiceDefinitionError
from dask_fleet.services.annotations import resolve
from dask_fleet.services.source import place_of

_NO_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a signature takes."""

    schema: dict[str, Any]
    """JSON Schema 2020-12 of the request body."""
    names: tuple[tuple[str, str], ...]
    """Field of the model and name of the parameter, in the order of the signature."""
    validate_json: Callable[[bytes], BaseModel]


class _Untellable(Exception):
    """JSON Schema cannot say this."""


class _StrictSchema(GenerateJsonSchema):
    """Refuses where pydantic would warn and leave something out."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:  # noqa: ARG002
        raise _Untellable(detail)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False  # "Origin Airport" for origin_airport tells nobody anything

    def encode_default(self, dft: Any) -> Any:
        value = super().encode_default(dft)
        if isinstance(dft, set | frozenset):
            # The order of a set differs from process to process; the id of a job must not.
            value = sorted(value, key=canonical_bytes)
        try:
            canonical_bytes(value)
            # pydantic writes NaN as null, which would be another default.
            canonical_bytes(to_jsonable_python(dft, inf_nan_mode="constants"))
        except (TypeError, ValueError, PydanticSerializationError) as exc:
            raise _Untellable(f"the default {_shown(dft)} has no JSON form ({exc})") from None
        return value


class _Refusal:
    """Raises errors that say where a parameter is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._where = f"{place_of(function)}: {getattr(function, '__qualname__', function)}()"

    def __call__(self, parameter: str, what: str) -> NoReturn:
        raise ServiceDefinitionError(f"{self._where}, parameter {parameter!r}: {what}") from None

    def whole(self, what: str) -> NoReturn:
        raise ServiceDefinitionError(f"{self._where}: {what}") from None


def compile_parameters(function: Callable[..., Any]) -> Parameters:
    """Return the parameters of `function`.

    Raises
    ------
    ServiceDefinitionError
        If a manifest cannot express the signature; names file, line, function and parameter, and says what to
        write instead.
    """
    refuse = _Refusal(function)
    if inspect.isgeneratorfunction(inspect.unwrap(function)) or inspect.isasyncgenfunction(inspect.unwrap(function)):
        refuse.whole("it yields; a job has one result: return a list")
    fields: dict[str, Any] = {}
    names: list[tuple[str, str]] = []
    for index, parameter in enumerate(inspect.signature(function).parameters.values()):
        field = f"p{index}"  # pydantic reserves names that people want, such as json and copy
        annotation, default = _annotation_and_default(function, parameter, refuse)
        # One model a parameter first, so that whatever fails names its parameter.
        _schema_of(
            parameter.name, _model({field: _field(annotation, default, parameter.name)}, refuse, parameter.name), refuse
        )
        fields[field] = _field(annotation, default, parameter.name)
        names.append((field, parameter.name))
    model = _model(fields, refuse, "")
    schema = _schema_of("", model, refuse)
    schema.setdefault("properties", {})
    for name, prop in schema["properties"].items():
        _check_default(model, schema, name, prop, refuse)
    validate = model.__pydantic_validator__.validate_json
    return Parameters(schema=schema, names=tuple(names), validate_json=validate)


def _annotation_and_default(function: Callable[..., Any], parameter: inspect.Parameter, refuse: _Refusal) -> tuple[Any, Any]:
    name = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        refuse(f"*{name}", f"a request has named parameters only: take a list instead, such as {name}: list[float]")
    if parameter.kind is parameter.VAR_KEYWORD:
        refuse(f"**{name}", f"name each parameter, or take one mapping, such as {name}: dict[str, float]")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        refuse(name, "parameters are passed by name: remove the '/' from the signature")
    if parameter.annotation is parameter.empty:
        refuse(name, f"it has no annotation: write its type, such as {name}: int")
    try:
        annotation = resolve(function, name, parameter.annotation)
    except NameError as exc:
        refuse(
            name,
            f"its annotation {parameter.annotation!r} is unknown when the service is loaded ({exc}):"
            " define or import it in the module, not only under TYPE_CHECKING",
        )
    except Exception as exc:  # noqa: BLE001 - an annotation is any expression of the author's
        refuse(name, f"its annotation {parameter.annotation!r} cannot be evaluated: {type(exc).__name__}: {exc}")
    default = parameter.default
    if isinstance(default, FieldInfo):
        refuse(
            name,
            "Field(…) stands as its default, which a plain call of the function would get:"
            f" write {name}: Annotated[<type>, Field(…)] = <default>",
        )
    for extra in get_args(annotation)[1:] if get_origin(annotation) is Annotated else ():
        if isinstance(extra, FieldInfo):
            if extra.default_factory is not None:
                refuse(name, "a manifest cannot express default_factory: write the default as a value, or None")
            if not extra.is_required():
                refuse(
                    name, f"its default stands inside Field(…): write {name}: … = <default>, so that plain calls know it too"
                )
            if extra.alias or extra.validation_alias or extra.serialization_alias:
                refuse(name, "an alias would give it a second name: rename the parameter")
    if isinstance(default, float) and not math.isfinite(default):
        refuse(name, f"its default {default} is not JSON: use None for a missing number, and annotate it as float | None")
    return annotation, default


def _field(annotation: Any, default: Any, name: str) -> tuple[Any, Any]:
    info = Field(alias=name) if default is _NO_DEFAULT else Field(default, alias=name)
    return annotation, info


def _model(fields: dict[str, Any], refuse: _Refusal, name: str) -> type[BaseModel]:
    try:
        return create_model("Parameters", __config__=ConfigDict(extra="forbid"), **fields)
    except PydanticSchemaGenerationError as exc:
        refuse(
            name,
            f"{_first_line(exc)}: a request carries JSON; take numbers, text, lists, dicts, dataclasses or pydantic models"
            " (a table or an array: as lists, or as the name of a file that the function opens)",
        )
    except (PydanticUserError, SchemaError, TypeError, NameError) as exc:
        refuse(name, f"pydantic cannot make a schema of its annotation: {_first_line(exc)}")


def _schema_of(name: str, model: type[BaseModel], refuse: _Refusal) -> dict[str, Any]:
    if (path := next(_default_factories(model.__pydantic_core_schema__), None)) is not None:
        inner = f" (in {path})" if path else ""
        refuse(name, f"a manifest cannot express default_factory{inner}: write the default as a value, or None")
    try:
        schema = model.model_json_schema(schema_generator=_StrictSchema, mode="validation")
    except (PydanticInvalidForJsonSchema, PydanticUserError) as exc:
        refuse(name, f"JSON cannot express its type: {_first_line(exc)}")
    except (_Untellable, PydanticSerializationError) as exc:
        refuse(name, f"a manifest cannot express it: {_first_line(exc)}; use a default that is plain JSON, or None")
    for key in ("title", "description"):
        schema.pop(key, None)
    try:
        # What was passed by hand into the schema may be anything.
        plain: dict[str, Any] = json.loads(json.dumps(to_jsonable_python(schema), allow_nan=False))
        jsonschema_rs.Draft202012Validator(plain, validate_formats=True)
    except (ValueError, TypeError) as exc:
        refuse(name, f"its JSON Schema is not valid: {_first_line(exc)}")
    return plain


def _check_default(
    model: type[BaseModel], schema: JsonSchemaValue, name: str, prop: dict[str, Any], refuse: _Refusal
) -> None:
    """The default travels like any other value, so it must pass like any other."""
    if "default" not in prop:
        return
    alone = {**schema, "properties": {name: prop}, "required": []}
    body = {name: prop["default"]}
    validator = jsonschema_rs.Draft202012Validator(alone, validate_formats=True, mask="it")
    if (problem := next(iter(validator.iter_errors(body)), None)) is not None:
        hint = " (times need their offset: give it a tzinfo)" if problem.kind.name == "format" else ""
        refuse(name, f"its default {_shown(prop['default'])} does not fit its own type: {problem.message}{hint}")
    try:
        model.__pydantic_validator__.validate_json(canonical_bytes(body))
    except ValidationError as exc:
        own = [error for error in exc.errors(include_url=False) if error["loc"][:1] == (name,)]
        if own:
            refuse(name, f"its default {_shown(prop['default'])} does not fit its own type: {own[0]['msg']}")


def _default_factories(schema: Any) -> Iterator[str]:
    """Yield where a ``default_factory`` stands in a core schema, at any depth: as ``Model.field``."""
    seen: set[int] = set()

    def walk(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            if id(node) in seen:
                return
            seen.add(id(node))
            if node.get("type") == "default" and "default_factory" in node:
                yield path
            owner = node.get("model_name") or node.get("dataclass_name") or ""
            for key, value in node.items():
                if key in {"metadata", "cls"}:
                    continue
                if key == "fields" and owner and owner != "Parameters":
                    members = value.items() if isinstance(value, dict) else ((one.get("name", ""), one) for one in value)
                    for member, one in members:
                        yield from walk(one, f"{owner}.{member}")
                else:
                    yield from walk(value, path)
        elif isinstance(node, list | tuple):
            for value in node:
                yield from walk(value, path)

    return walk(schema, "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
