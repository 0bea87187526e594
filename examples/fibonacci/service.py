"""Exact mathematics: Fibonacci numbers of any size.

A result may have 20,898 digits. It stays exact on its way: Fleet never sends an integer through a floating-point number.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dask_fleet import Service

service = Service("math")


@service.endpoint(cache="365d", timeout="30s")
def fibonacci(n: Annotated[int, Field(ge=0, le=100_000)]) -> int:
    """The `n`-th Fibonacci number, of 0, 1, 1, 2, 3, 5, 8 and so on.

    By fast doubling, F(2k) = F(k) · (2 F(k+1) - F(k)) and F(2k+1) = F(k)² + F(k+1)²: one step a bit of `n`.
    """
    current, following = 0, 1
    for bit in f"{n:b}":
        doubled = current * (2 * following - current)
        squares = current * current + following * following
        current, following = (squares, doubled + squares) if bit == "1" else (doubled, squares)
    return current
