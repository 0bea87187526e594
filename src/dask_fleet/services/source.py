"""Where a function was written, for messages."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any


def place_of(function: Callable[..., Any]) -> str:
    """Return ``file.py:12`` of a function, or its name where there is no such place. Reads nothing from
    disk.
    """
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if code is None:
        return f"{getattr(plain, '__module__', '?')}.{getattr(plain, '__qualname__', repr(plain))}"
    return f"{short_path(code.co_filename)}:{code.co_firstlineno}"


def short_path(path: str) -> str:
    """Return `path` relative to the working folder if it lies within, as people read it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
