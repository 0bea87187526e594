"""A service with one endpoint of each kind of result, for the tests of the HTTP API."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from dask_fleet import Service, progress

service = Service("http", doc="What the HTTP tests call.")


class Point(BaseModel):
    x: float
    y: float = 0.0


@service.endpoint
def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


@service.endpoint
def length(point: Point, kind: Literal["l1", "l2"] = "l2", times: Annotated[int, Field(ge=1, le=9)] = 1) -> float:
    """Length of a vector, some times over."""
    one = abs(point.x) + abs(point.y) if kind == "l1" else math.hypot(point.x, point.y)
    return one * times


@service.endpoint
def text(letters: str = "a", repeat: Annotated[int, Field(ge=0, le=1_000_000)] = 1) -> str:
    """Some text, as long as wanted."""
    return letters * repeat


@service.endpoint
def blob(size: Annotated[int, Field(ge=0, le=4_000_000)]) -> bytes:
    """So many bytes."""
    return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


@service.endpoint
def fails(reason: str = "no") -> int:
    """Raise what is asked for."""
    raise ValueError(reason)


@service.endpoint
def steps(count: Annotated[int, Field(ge=0, le=100)] = 3) -> int:
    """Report each step."""
    for number in range(count):
        progress(number, count, f"step {number}")
    return count
