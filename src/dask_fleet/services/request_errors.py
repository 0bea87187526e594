"""Says which fields of a refused request are wrong, in words, at a bounded cost.

The compiled validator makes all its errors at once, a second's worth for a list of 100,000 wrong items. So it
is asked for them only where the value is small; a large one is taken apart first, which needs one cheap yes
or no for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jsonschema_rs

from dask_fleet.services.canonical_form import validator
from dask_fleet.services.endpoint import MAX_ERRORS, summary_of

__all__ = ["ErrorFinder", "summary_of"]

_SMALL_NODES = 200
_Loc = list[str | int]
_FORMATS = {
    "date-time": "a time with its offset, such as 2026-01-31T12:00:00Z (RFC 3339)",
    "date": "a date such as 2026-01-31",
    "time": "a time of day with its offset, such as 12:00:00Z (RFC 3339)",
    "duration": "a duration such as PT1H30M (ISO 8601)",
    "uuid": "a UUID such as 123e4567-e89b-12d3-a456-426614174000",
}
_TYPES = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}


class ErrorFinder:
    """Finds the errors of values that do not fit `schema`."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._root = schema
        self._validators: dict[int, jsonschema_rs.Draft202012Validator] = {}

    def errors(self, value: Any) -> list[dict[str, Any]]:
        """Return one document ``{"loc", "msg", "type"}`` for each wrong field, at most 100."""
        found: list[dict[str, Any]] = []
        self._collect(self._root, value, [], found)
        return found[:MAX_ERRORS] or [{"loc": [], "msg": "does not fit the schema", "type": "schema"}]

    def _validator(self, schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
        known = self._validators.get(id(schema))
        if known is None:
            whole = schema if schema is self._root else {"allOf": [schema], "$defs": self._root.get("$defs", {})}
            known = self._validators[id(schema)] = validator(whole, mask="it")
        return known

    def _collect(self, schema: Any, value: Any, loc: _Loc, found: list[dict[str, Any]]) -> None:
        if len(found) >= MAX_ERRORS or not isinstance(schema, dict):
            return
        if "$ref" in schema:
            self._collect(self._resolve(schema["$ref"]), value, loc, found)
            return
        check = self._validator(schema)
        if check.is_valid(value):
            return
        if _is_small(value):
            for error in check.iter_errors(value):
                _describe(error, loc, found)
            return
        before = len(found)
        options = [one for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())) if one != {"type": "null"}]
        if len(options) == 1:
            self._collect(options[0], value, loc, found)
        elif isinstance(value, dict):
            self._collect_members(schema, value, loc, found)
        elif isinstance(value, list):
            prefix = schema.get("prefixItems", [])
            for index, item in enumerate(value):
                part = prefix[index] if index < len(prefix) else schema.get("items")
                if part is None or len(found) >= MAX_ERRORS:
                    break
                self._collect(part, item, [*loc, index], found)
        if len(found) == before:
            found.append({"loc": loc, "msg": "does not fit the schema (see the endpoint's documentation)", "type": "schema"})

    def _collect_members(
        self, schema: dict[str, Any], value: dict[str, Any], loc: _Loc, found: list[dict[str, Any]]
    ) -> None:
        properties = schema.get("properties", {})
        found.extend(_missing(loc, name) for name in schema.get("required", ()) if name not in value)
        rest = schema.get("additionalProperties", True)
        for name, member in value.items():
            if len(found) >= MAX_ERRORS:
                return
            if name in properties:
                self._collect(properties[name], member, [*loc, name], found)
            elif rest is False and not schema.get("patternProperties"):
                found.append(_unexpected(loc, name))
            else:
                self._collect(rest, member, [*loc, name], found)

    def _resolve(self, ref: str) -> Any:
        node: Any = self._root
        for part in ref.removeprefix("#").strip("/").split("/") if ref != "#" else ():
            node = node[part.replace("~1", "/").replace("~0", "~")]
        return node


def _is_small(value: Any) -> bool:
    left = _SMALL_NODES
    waiting = [value]
    while waiting:
        node = waiting.pop()
        left -= 1
        if isinstance(node, dict):
            left -= len(node)
            if left > 0:
                waiting.extend(node.values())
        elif isinstance(node, list):
            left -= len(node)
            if left > 0:
                waiting.extend(node)
        if left < 0:
            return False
    return True


def _missing(loc: _Loc, name: str) -> dict[str, Any]:
    return {"loc": [*loc, name], "msg": "is required", "type": "required"}


def _unexpected(loc: _Loc, name: str) -> dict[str, Any]:
    return {"loc": [*loc, name[:100]], "msg": "is not a parameter", "type": "unexpected"}


def _describe(error: jsonschema_rs.ValidationError, prefix: _Loc, found: list[dict[str, Any]]) -> None:
    kind: Any = error.kind
    loc: _Loc = [*prefix, *error.instance_path]
    if kind.name == "required":
        found.append(_missing(loc, kind.property))
    elif kind.name in {"additionalProperties", "unevaluatedProperties"}:
        found.extend(_unexpected(loc, name) for name in kind.unexpected[:MAX_ERRORS])
    elif kind.name in {"anyOf", "oneOfNotValid", "oneOf"} and hasattr(kind, "context"):
        _describe_choice(kind.context, prefix, loc, found)
    else:
        words = _WORDS.get(kind.name)
        message = words(kind) if words is not None else error.message
        found.append({"loc": loc, "msg": message[:500], "type": kind.name})


def _describe_choice(
    branches: list[list[jsonschema_rs.ValidationError]], prefix: _Loc, loc: _Loc, found: list[dict[str, Any]]
) -> None:
    """Of an Optional, or a union in which one branch got further into the value, say what that branch
    says.
    """
    here = len(loc) - len(prefix)
    wrong_type = [branch for branch in branches if _only_wrong_type(branch, here)]
    rest = [branch for branch in branches if not _only_wrong_type(branch, here)]
    if len(rest) == 1:
        for error in rest[0]:
            _describe(error, prefix, found)
        return
    if not rest:
        kinds = [word for branch in wrong_type for word in _type_words(branch[0].kind)]
        found.append({"loc": loc, "msg": f"must be {_or(dict.fromkeys(kinds))}", "type": "type"})
        return
    options: list[dict[str, Any]] = []
    for branch in branches:
        for error in branch[:1]:
            _describe(error, prefix, options)
    said = dict.fromkeys(option["msg"] for option in options if option["loc"] == loc)
    message = "; or ".join(said) if said else "fits none of the forms that are taken"
    found.append({"loc": loc, "msg": message[:500], "type": "anyOf"})


def _only_wrong_type(branch: list[jsonschema_rs.ValidationError], depth: int) -> bool:
    return len(branch) == 1 and branch[0].kind.name == "type" and len(branch[0].instance_path) == depth


def _type_words(kind: Any) -> list[str]:
    return [_TYPES.get(name, name) for name in kind.types]


def _or(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _options(kind: Any) -> str:
    import json

    shown = [json.dumps(option, ensure_ascii=False)[:60] for option in kind.options[:20]]
    return f"must be {_or(shown)}" if len(kind.options) <= 20 else f"must be one of {', '.join(shown)}, …"


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


_WORDS: dict[str, Callable[[Any], str]] = {
    "type": lambda kind: f"must be {_or(_type_words(kind))}",
    "enum": _options,
    "minimum": lambda kind: f"must be at least {kind.limit}",
    "maximum": lambda kind: f"must be at most {kind.limit}",
    "exclusiveMinimum": lambda kind: f"must be more than {kind.limit}",
    "exclusiveMaximum": lambda kind: f"must be less than {kind.limit}",
    "multipleOf": lambda kind: f"must be a multiple of {kind.multiple_of}",
    "minLength": lambda kind: f"must have at least {_plural(kind.limit, 'character')}",
    "maxLength": lambda kind: f"must have at most {_plural(kind.limit, 'character')}",
    "minItems": lambda kind: f"must have at least {_plural(kind.limit, 'item')}",
    "maxItems": lambda kind: f"must have at most {_plural(kind.limit, 'item')}",
    "uniqueItems": lambda _: "must not have an item twice",
    "pattern": lambda kind: f"must match the pattern {kind.pattern}",
    "format": lambda kind: f"must be {_FORMATS.get(kind.format, kind.format)}",
}
