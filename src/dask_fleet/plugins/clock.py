"""Time as a port, so that tests move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks that must not be mixed."""

    def now_us(self) -> int:
        """Return UTC in microseconds since 1970: for what is written down. It may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps: for durations inside this process."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        """Return UTC in microseconds since 1970."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds of the monotonic clock."""
        return time.monotonic()
