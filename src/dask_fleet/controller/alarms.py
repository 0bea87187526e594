"""Things to do at a given time: back-offs that end, deadlines that pass. One timer of the loop serves them all."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from dask_fleet.plugins.clock import Clock

_LONGEST_SLEEP_S = 5.0
"""The clock of due times may jump; we look again at least this often."""


class Alarms:
    """Calls functions when their time has come, in order. Not durable: recovery sets them anew from the ledger."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def at(self, due_us: int, action: Callable[[], None]) -> None:
        """Call `action` once `due_us` (UTC) has passed; it must not raise and must check that it still applies."""
        if self._closed:
            return
        heapq.heappush(self._heap, (due_us, next(self._order), action))
        if self._heap[0][0] == due_us:
            self._arm()

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            wait_s = (self._heap[0][0] - self._clock.now_us()) / 1e6
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(max(wait_s, 0.0), _LONGEST_SLEEP_S), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now_us = self._clock.now_us()
        while self._heap and self._heap[0][0] <= now_us:
            _, _, action = heapq.heappop(self._heap)
            action()
        self._arm()
