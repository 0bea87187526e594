"""The clock on which leases are counted: it goes on while the ledger is open and can be written, and never goes back."""

from __future__ import annotations

from dask_fleet.model.leases import AHEAD_S
from dask_fleet.plugins.clock import Clock

_AHEAD_US = int(AHEAD_S * 1_000_000)


class LeaseClock:
    """Goes by the monotonic clock, but never beyond the horizon that is on disk.

    The horizon is always written before the clock may go there. So a crash cannot set it back: it begins again at the
    horizon, where it cannot have been yet. And a ledger that refuses writes stops it, so that no lease ends of that.

    Parameters
    ----------
    clock
        Where durations come from.
    begin_us
        The horizon that was written last; 0 for a new ledger. The clock stands there until a new one is written.
    """

    def __init__(self, clock: Clock, begin_us: int) -> None:
        self._clock = clock
        self._base_us = begin_us
        self._since = clock.monotonic()
        self._horizon_us = begin_us

    def now_us(self) -> int:
        """Return the time, in microseconds."""
        elapsed_us = int((self._clock.monotonic() - self._since) * 1_000_000)
        return min(self._base_us + max(elapsed_us, 0), self._horizon_us)

    def next_horizon_us(self) -> int:
        """Return what is to be written now, and told to `extend` once it is durable."""
        return max(self.now_us() + _AHEAD_US, self._horizon_us)

    def extend(self, horizon_us: int) -> None:
        """`horizon_us` is on disk: the clock may go on up to there."""
        self._base_us = self.now_us()  # what it stood still is not made up for
        self._since = self._clock.monotonic()
        self._horizon_us = max(self._horizon_us, horizon_us)
