"""``month=1``: from text to the value an endpoint's schema asks for. Decisions only.

The schema chooses: ``n=5`` is a number for ``n: int`` and text for ``n: str``. What fits no type is sent as text, and the
server says what is wrong with it. ``name:=JSON`` says it exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dask_fleet.client.schema_text import resolve
from dask_fleet.model.errors import BadRequest

_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})
_NO = object()


def parse_assignments(words: Iterable[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that ``name=value`` words give; a repeated name makes a list.

    Raises
    ------
    BadRequest
        If a word is none, or its JSON is malformed.
    """
    properties: Mapping[str, Any] = schema.get("properties") or {}
    found: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.rstrip(":"):
            raise BadRequest(f"{word!r} is no parameter: write name=value, such as month=1")
        if name.endswith(":"):
            try:
                found[name[:-1]] = json.loads(text)
            except ValueError as exc:
                raise BadRequest(f"{word!r} is not JSON after the := ({exc})") from None
        else:
            texts.setdefault(name, []).append(text)
    for name, given in texts.items():
        property_schema = properties.get(name, {})
        if len(given) > 1:
            items = _items(property_schema, schema)
            found[name] = [coerce(text, items, schema) for text in given]
        else:
            found[name] = coerce(given[0], property_schema, schema)
    return found


def coerce(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """Return `text` as the narrowest type that the schema allows and the text fits; else as text."""
    kinds, choices = _kinds(schema, root)
    for choice in choices:
        if text == (choice if isinstance(choice, str) else json.dumps(choice)):
            return choice
    for kind in ("null", "boolean", "integer", "number", "array", "object"):
        if kind in kinds:
            value = _as(kind, text, schema, root)
            if value is not _NO:
                return value
    return text


def _as(kind: str, text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    word = text.strip().lower()
    if kind == "null":
        return None if word in {"null", "none"} else _NO
    if kind == "boolean":
        return True if word in _TRUE else False if word in _FALSE else _NO
    if kind == "integer":
        try:
            return int(text)
        except ValueError:
            return _NO
    try:
        value = json.loads(text)
    except ValueError:
        value = _NO
    if kind == "number":
        return value if isinstance(value, int | float) and not isinstance(value, bool) else _NO
    if kind == "object":
        return value if isinstance(value, dict) else _NO
    if isinstance(value, list):
        return value
    items = _items(schema, root)
    if text and not text.startswith(("[", "{")):
        return [coerce(part.strip(), items, root) for part in text.split(",")]
    return _NO


def _kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> tuple[set[str], list[Any]]:
    """Return the JSON types and the listed values that a schema allows."""
    found = resolve(schema, root)
    kinds: set[str] = set()
    choices: list[Any] = list(found.get("enum") or ())
    if "const" in found:
        choices.append(found["const"])
    named = found.get("type")
    if not choices:
        kinds.update([named] if isinstance(named, str) else named or ())
    if depth < 8:
        for key in ("anyOf", "oneOf", "allOf"):
            for part in found.get(key) or ():
                more_kinds, more_choices = _kinds(part, root, depth + 1)
                kinds |= more_kinds
                choices += more_choices
    return kinds, choices


def _items(schema: Any, root: Mapping[str, Any]) -> Any:
    """Return the schema of an array's items, also where the array is one of several choices."""
    found = resolve(schema, root)
    if "items" in found:
        return found["items"]
    for key in ("anyOf", "oneOf"):
        for part in found.get(key) or ():
            inner = resolve(part, root)
            if inner.get("type") == "array":
                return inner.get("items", {})
    return {}


def listed_values(schema: Any, root: Mapping[str, Any]) -> list[str]:
    """Return the values that a schema lists, as they are written on the command line."""
    kinds, choices = _kinds(schema, root)
    if "boolean" in kinds:
        choices = [*choices, True, False]
    return [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
