"""Things to do at a given time: back-offs that end, deadlines that pass. One timer of the loop serves them all."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from dask_fleet.plugins.clock import Clock

_LONGEST_SLEEP_S = 5.0
"""The wall clock may jump; we look again at least this often."""

Action = Callable[[], None]


class Alarms:
    """Calls functions when their time has come, in order. Not durable: recovery sets them anew from the ledger.

    What is due at a point of time that somebody named goes by the wall clock, whatever that does; what is due after a while
    goes by the monotonic clock, which no jump touches.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_date: list[tuple[int, int, Action]] = []
        self._by_duration: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def at(self, due_us: int, action: Action) -> None:
        """Call `action` once `due_us` (UTC) has passed; it must not raise and must check that it still applies."""
        if self._closed:
            return
        heapq.heappush(self._by_date, (due_us, next(self._order), action))
        if self._by_date[0][0] == due_us:
            self._arm()

    def after(self, seconds: float, action: Action) -> None:
        """Call `action` in so many seconds, under the same conditions."""
        if self._closed:
            return
        due = self._clock.monotonic() + seconds
        heapq.heappush(self._by_duration, (due, next(self._order), action))
        if self._by_duration[0][0] == due:
            self._arm()

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._by_date.clear()
        self._by_duration.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed or not (self._by_date or self._by_duration):
            return
        wait_s = _LONGEST_SLEEP_S
        if self._by_date:
            wait_s = min(wait_s, (self._by_date[0][0] - self._clock.now_us()) / 1e6)
        if self._by_duration:
            wait_s = min(wait_s, self._by_duration[0][0] - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now_us, now = self._clock.now_us(), self._clock.monotonic()
        while self._by_date and self._by_date[0][0] <= now_us:
            heapq.heappop(self._by_date)[2]()
        while self._by_duration and self._by_duration[0][0] <= now:
            heapq.heappop(self._by_duration)[2]()
        self._arm()
