"""A JSON Schema as the type annotation it came from, for signatures and help texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "integer": "int",
    "number": "float",
    "string": "str",
    "boolean": "bool",
    "null": "None",
    "object": "dict",
    "array": "list",
}
_FORMATS = {
    "date": "date",
    "date-time": "datetime",
    "time": "time",
    "duration": "timedelta",
    "uuid": "UUID",
    "binary": "bytes",
}
_MAX_DEPTH = 4


def resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a ``$ref`` into the root's definitions; what cannot be followed is an empty schema."""
    for _ in range(20):  # a reference may lead to a reference; a circle ends here
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        schema = target
    return {}


def schema_text(schema: Any, root: Mapping[str, Any], depth: int = 0) -> str:
    """Return a short Python-like type: ``int``, ``'EWR' | 'JFK' | None``, ``list[float]``; ``Any`` where none tells."""
    found = resolve(schema, root)
    if depth > _MAX_DEPTH:
        return "…"
    if "const" in found:
        return repr(found["const"])
    if "enum" in found:
        return " | ".join(repr(value) for value in found["enum"])
    for key in ("anyOf", "oneOf"):
        if key in found:
            return " | ".join(dict.fromkeys(schema_text(part, root, depth + 1) for part in found[key]))
    kinds = found.get("type")
    if isinstance(kinds, list):
        return " | ".join(_NAMES.get(kind, "Any") for kind in kinds)
    if kinds == "array" and "items" in found:
        return f"list[{schema_text(found['items'], root, depth + 1)}]"
    if kinds == "object" and found.get("title") and found.get("properties"):
        return str(found["title"])
    if kinds == "string" and found.get("format") in _FORMATS:
        return _FORMATS[found["format"]]
    return _NAMES.get(kinds, "Any") if isinstance(kinds, str) else "Any"
