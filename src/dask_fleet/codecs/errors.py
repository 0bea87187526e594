"""Why a value cannot be stored."""

from __future__ import annotations

WHAT_CAN_BE_RETURNED = (
    "an endpoint can return JSON values (None, bool, int, float, str, list, tuple, dict), dataclasses, pydantic models,"
    " pandas or pyarrow tables, numpy arrays, bytes, a matplotlib figure, or a Dask collection"
)


class ResultNotSerializable(TypeError):
    """The value, or something inside it, has no stored form; the message names its type, its place and what
    to do.
    """


class ResultTooLarge(ValueError):
    """The stored form is larger than the endpoint's ``max_result``."""


def type_name(value: object) -> str:
    """Return ``package.module.Class`` of a value, without the module for Python's own types."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
