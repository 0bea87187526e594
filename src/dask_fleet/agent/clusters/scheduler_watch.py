"""What the kernel says of a scheduler process: that it was stopped, or that it comes too close to its memory limit."""

from __future__ import annotations

import asyncio
from typing import Any

from dask_fleet.agent.deaths import readable
from dask_fleet.agent.vitals import KILL_AT, LOOK_AGAIN_S, Vitals, next_look_s
from dask_fleet.model.failure import Cause


class SchedulerWatch:
    """Looks at one scheduler process twice a second, and more often at one that grows.

    Parameters
    ----------
    pid
        Of a child that has not been waited for: no other process can have it.
    limit_bytes
        What it may have; 0 for no limit.
    """

    def __init__(self, pid: int, limit_bytes: int) -> None:
        self._vitals = Vitals(pid)
        self._limit_bytes = limit_bytes

    async def until(self, *over: asyncio.Future[Any]) -> str:
        """Wait until one of `over` is done. Should the process have to be killed before, return why, else nothing."""
        loop, wait_s = asyncio.get_running_loop(), next_look_s(0, 0.0, 0)
        while not (await asyncio.wait(over, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED))[0]:
            why, wait_s = self._look(loop.time())
            if why:
                return why
        return ""

    def close(self) -> None:
        """Look no more. Twice is harmless."""
        self._vitals.close()

    def _look(self, now: float) -> tuple[str, float]:
        """Return why it must be killed, if it must, and when to look again."""
        vitals, limit = self._vitals, self._limit_bytes
        if (seen := vitals.look(now)) is None:
            return "", next_look_s(0, 0.0, 0)
        sample, before, since_s = seen
        growth = (sample.rss_bytes - before.rss_bytes) / since_s if before is not None and since_s > 0 else 0.0
        if limit and sample.rss_bytes >= KILL_AT * limit:
            return (
                f"was killed for its memory ({Cause.MEMORY_LIMIT}): it had {readable(vitals.ask_peak())} of the"
                f" {readable(limit)} it may have; compute smaller graphs, or raise scheduler_memory_limit"
            ), 0.0
        if vitals.stopped_since is None:
            return "", next_look_s(sample.rss_bytes, growth, limit)
        if now - vitals.stopped_since >= LOOK_AGAIN_S * 0.9:
            return "was stopped, and killed for that", 0.0
        return "", LOOK_AGAIN_S
