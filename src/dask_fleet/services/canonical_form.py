"""Brings parameters that fit their schema into canonical form: defaults filled in, numbers in the form that
their type asks for.

A schema is compiled once to a tree of closures; parts with nothing to do compile to ``None`` and cost
nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jsonschema_rs

Normalise = Callable[[Any], Any]
"""Takes a value that fits its schema and may change it in place; returns the value in canonical form.
Defaults in it are shared by all values: write it out, do not change it."""

_Schema = dict[str, Any] | bool


class NumberTooLarge(Exception):
    """A whole number is beyond what a double can hold; ``loc`` is its place."""

    def __init__(self) -> None:
        super().__init__()
        self.loc: list[str | int] = []


def compile_normaliser(schema: dict[str, Any]) -> Normalise | None:
    """Return what brings values of `schema` into canonical form, or ``None`` if they always are in it."""
    return _Compiler(schema).compile(schema)


class _Compiler:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._refs: dict[str, Normalise | None] = {}

    def compile(self, schema: _Schema) -> Normalise | None:
        if isinstance(schema, bool):
            return None
        steps = [
            step
            for step in (
                self._reference(schema),
                self._members(schema),
                self._items(schema),
                *(self.compile(part) for part in schema.get("allOf", ())),
                self._branches(schema, "anyOf"),
                self._branches(schema, "oneOf"),
                self._listed(schema),
                self._number(schema),
            )
            if step is not None
        ]
        if len(steps) <= 1:
            return steps[0] if steps else None

        def in_turn(value: Any) -> Any:
            for step in steps:
                value = step(value)
            return value

        return in_turn

    def _reference(self, schema: dict[str, Any]) -> Normalise | None:
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            return None
        if ref not in self._refs:
            # A model that contains itself meets its own name before it is compiled: it is looked up when it runs.
            def later(value: Any) -> Any:
                step = self._refs[ref]
                return value if step is None or step is later else step(value)

            self._refs[ref] = later
            self._refs[ref] = self.compile(self._resolve(ref))
        return self._refs[ref]

    def _resolve(self, ref: str) -> _Schema:
        if ref == "#":
            return self._root
        node: Any = self._root
        for part in ref.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        return node  # type: ignore[no-any-return]

    def _members(self, schema: dict[str, Any]) -> Normalise | None:
        properties: dict[str, _Schema] = schema.get("properties", {})
        defaults: list[tuple[str, Any, Normalise | None]] = []
        known: list[tuple[str, Normalise]] = []
        for name, prop in properties.items():
            step = self.compile(prop)
            if isinstance(prop, dict) and "default" in prop:
                defaults.append((name, prop["default"], step))
            if step is not None:
                known.append((name, step))
        others = self.compile(schema["additionalProperties"]) if "additionalProperties" in schema else None
        patterns = [step for step in map(self.compile, schema.get("patternProperties", {}).values()) if step is not None]
        others = others or (patterns[0] if len(patterns) == 1 else None)
        if not (defaults or known or others):
            return None
        ready: dict[str, Any] = {}

        def members(value: Any) -> Any:
            if type(value) is not dict:
                return value
            name = ""
            try:
                for name, step in known:
                    if name in value:
                        value[name] = step(value[name])
                if others is not None:
                    for name in value:
                        if name not in properties:
                            value[name] = others(value[name])
                for name, default, step_ in defaults:
                    if name not in value:
                        if name not in ready:
                            # Only now, because a model that contains itself is not compiled before.
                            own = copy.deepcopy(default)
                            ready[name] = own if step_ is None else step_(own)
                        value[name] = ready[name]
            except NumberTooLarge as exc:
                exc.loc.insert(0, name)
                raise
            return value

        return members

    def _items(self, schema: dict[str, Any]) -> Normalise | None:
        prefix = [self.compile(part) for part in schema.get("prefixItems", ())]
        rest = self.compile(schema["items"]) if "items" in schema else None
        if rest is None and not any(prefix):
            return None
        fixed = len(prefix)

        def items(value: Any) -> Any:
            if type(value) is not list:
                return value
            index = 0
            try:
                for index, item in enumerate(value):
                    step = prefix[index] if index < fixed else rest
                    if step is not None:
                        value[index] = step(item)
            except NumberTooLarge as exc:
                exc.loc.insert(0, index)
                raise
            return value

        return items

    def _branches(self, schema: dict[str, Any], keyword: str) -> Normalise | None:
        branches: list[_Schema] = schema.get(keyword, [])
        steps = [self.compile(branch) for branch in branches]
        if not any(steps):
            return None
        others = [index for index, branch in enumerate(branches) if branch != {"type": "null"}]
        if len(others) == 1:  # Optional: nothing to choose
            only = steps[others[0]]
            assert only is not None
            return lambda value: value if value is None else only(value)
        choices = [(self._validator(branch), step) for branch, step in zip(branches, steps, strict=True)]

        def first_that_fits(value: Any) -> Any:
            for fits, step in choices:
                if fits(value):
                    return value if step is None else step(value)
            return value

        return first_that_fits

    def _validator(self, branch: _Schema) -> Callable[[Any], bool]:
        whole = {"allOf": [branch], "$defs": self._root.get("$defs", {})}
        return validator(whole).is_valid

    def _listed(self, schema: dict[str, Any]) -> Normalise | None:
        members = [schema["const"]] if "const" in schema else schema.get("enum", [])
        numbers = [member for member in members if isinstance(member, int | float) and not isinstance(member, bool)]
        if not numbers:
            return None

        def as_listed(value: Any) -> Any:
            # JSON Schema holds 1.0 and 1 for equal; the spelling of the list counts.
            if isinstance(value, int | float) and not isinstance(value, bool):
                for number in numbers:
                    if number == value:
                        return number
            return value

        return as_listed

    def _number(self, schema: dict[str, Any]) -> Normalise | None:
        if "enum" in schema or "const" in schema:
            return None
        kind = schema.get("type")
        kinds = [kind] if isinstance(kind, str) else list(kind or ())
        if "integer" in kinds:
            return _as_integer
        return _as_number if "number" in kinds else None


def validator(schema: dict[str, Any], *, mask: str | None = None) -> jsonschema_rs.Draft202012Validator:
    """Compile `schema` as the server reads it: formats are asserted, patterns take linear time where they
    can.
    """
    for patterns in (jsonschema_rs.RegexOptions(), jsonschema_rs.FancyRegexOptions()):
        try:
            return jsonschema_rs.Draft202012Validator(
                schema, validate_formats=True, mask=mask, pattern_options=patterns, offline=True
            )
        except (ValueError, jsonschema_rs.ValidationError):
            continue  # a pattern with look-around, which only the backtracking engine has
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True, mask=mask, offline=True)


def _as_integer(value: Any) -> Any:
    return int(value) if type(value) is float else value


def _as_number(value: Any) -> Any:
    if type(value) is not int:
        return value
    try:
        number = float(value)
    except OverflowError:
        raise NumberTooLarge from None
    # A whole number that no double equals keeps its digits: a Decimal can use them.
    return number if number == value else value
