"""Long work on the event loop, cut into slices: everybody else has a turn between two of them."""

from __future__ import annotations

import asyncio
import time

SLICE_S = 0.004
"""How long one piece of work may hold the loop: about what an ordinary request takes."""


class Pacer:
    """Lets the loop go on when a slice is used up: ``await pacer.rest()`` between any two steps."""

    __slots__ = ("_since", "_slice_s")

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self._slice_s = slice_s
        self._since = time.perf_counter()

    async def rest(self) -> None:
        """Give way if this slice has lasted long enough."""
        if time.perf_counter() - self._since >= self._slice_s:
            await asyncio.sleep(0)
            self._since = time.perf_counter()
