"""A parameter's JSON Schema in a few words, for people."""

from __future__ import annotations

import json
from typing import Any

_MAX_DEPTH = 6
_BOUNDS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "more than {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "less than {}"),
    ("multipleOf", "a multiple of {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("pattern", "matches {}"),
)


def describe(schema: Any, definitions: dict[str, Any], depth: int = 0) -> str:
    """Return the type: ``integer``, ``"EWR" | "JFK" | null``, ``[number]``, ``Point``."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return "any"
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        target = definitions.get(name, {})
        return name if target.get("type") == "object" or "enum" not in target else describe(target, definitions, depth + 1)
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(dict.fromkeys(describe(part, definitions, depth + 1) for part in schema[key]))
    if "allOf" in schema:
        return " & ".join(describe(part, definitions, depth + 1) for part in schema["allOf"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " | ".join(kind)
    if kind == "array":
        return f"[{describe(schema.get('items'), definitions, depth + 1)}]"
    if kind == "string" and "format" in schema:
        return str(schema["format"])
    return str(kind)


def limits(schema: Any, definitions: dict[str, Any]) -> str:
    """Return what a value must keep to: ``at least 1; at most 12``."""
    if not isinstance(schema, dict):
        return ""
    found = [text.format(schema[key]) for key, text in _BOUNDS if key in schema]
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]
    found.extend(inner for part in parts if (inner := limits(part, definitions)))
    if "$ref" in schema:
        target = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
        if target.get("type") == "object":
            members = ", ".join(
                f"{name}: {describe(member, definitions)}" for name, member in target.get("properties", {}).items()
            )
            found.append(f"{{{members}}}")
    return "; ".join(found)
