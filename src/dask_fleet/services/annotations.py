"""Resolves annotations, also those written as strings (``from __future__ import annotations``), one at a
time.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any


def resolve(function: Callable[..., Any], name: str, annotation: Any) -> Any:
    """Return the type that the annotation of parameter `name` (or ``"return"``) names, with its ``Annotated``
    metadata.

    Raises
    ------
    Exception
        Whatever evaluating the annotation raises: mostly ``NameError``.
    """
    plain = inspect.unwrap(function)
    namespace = dict(getattr(plain, "__globals__", {}))
    # A class made inside a function is only known to the functions it encloses.
    code = getattr(plain, "__code__", None)
    if code is not None and plain.__closure__:
        for free, cell in zip(code.co_freevars, plain.__closure__, strict=True):
            try:
                namespace.setdefault(free, cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    return typing.get_type_hints(holder, globalns=namespace, include_extras=True)[name]
