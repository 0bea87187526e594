"""JSON Schemas of many endpoints in one document: definitions get names that are theirs alone."""

from __future__ import annotations

import re
from typing import Any

TAGGED_FLOAT = "TaggedFloat"

_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9._-]")
_ONE = frozenset(
    {
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"dependentSchemas", "patternProperties", "properties"})
_REFERENCE = "#/$defs/"


class Components:
    """Collects the ``components/schemas`` of a document."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self.schemas = schemas

    def add(self, name: str, schema: dict[str, Any], *, tagged_floats: bool = False) -> dict[str, Any]:
        """Put a schema and its ``$defs`` in under names that nothing has; return the reference to it.

        With `tagged_floats`, each number may also be a tagged NaN or infinity, as results have them.
        """
        taken = self._free(name)
        self.schemas[taken] = {}
        names = {definition: self._free(f"{name}.{definition}") for definition in schema.get("$defs", {})}
        for definition, own in names.items():
            self.schemas[own] = _moved(schema["$defs"][definition], names, tagged_floats=tagged_floats)
        self.schemas[taken] = _moved(schema, names, tagged_floats=tagged_floats)
        return {"$ref": f"#/components/schemas/{taken}"}

    def _free(self, name: str) -> str:
        plain = _NOT_ALLOWED.sub("_", name)
        free, number = plain, 2
        while free in self.schemas:
            free, number = f"{plain}_{number}", number + 1
        return free


def _moved(schema: Any, names: dict[str, str], *, tagged_floats: bool) -> Any:
    """Return a schema whose references point into components.

    It goes where schemas stand and nowhere else: a default or an example is data, even if it has a member ``$ref``.
    """
    if not isinstance(schema, dict):
        return schema

    def move(inner: Any) -> Any:
        return _moved(inner, names, tagged_floats=tagged_floats)

    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key in {"$defs", "$schema", "$id"}:
            continue
        if key == "$ref":
            moved[key] = _reference(value, names)
        elif key == "discriminator" and isinstance(value, dict):
            mapping = {tag: _reference(target, names) for tag, target in value.get("mapping", {}).items()}
            moved[key] = {**value, "mapping": mapping} if mapping else value
        elif key in _ONE:
            moved[key] = move(value)
        elif key in _LIST and isinstance(value, list):
            moved[key] = [move(item) for item in value]
        elif key in _NAMED and isinstance(value, dict):
            moved[key] = {name: move(item) for name, item in value.items()}
        else:
            moved[key] = value
    if tagged_floats and moved.get("type") == "number":
        return {"anyOf": [moved, {"$ref": f"#/components/schemas/{TAGGED_FLOAT}"}]}
    return moved


def _reference(target: str, names: dict[str, str]) -> str:
    if target.startswith(_REFERENCE):
        definition = target.removeprefix(_REFERENCE).replace("~1", "/").replace("~0", "~")
        if definition in names:
            return f"#/components/schemas/{names[definition]}"
    return target
