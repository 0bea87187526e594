"""Decides when a stored result is compared with its digest before it is served: nobody gets wrong bytes in silence.

A small one is read anyway, and compared each time. A large one is compared when this server has not done so before, when its
file has changed since by whatever its file system tells (another file, size or time), and once an hour.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from dask_fleet.model.errors import ResultCorrupt
from dask_fleet.plugins.result_store import ResultStore

VERIFY_TIMEOUT_S = 600.0
"""For the largest result on a slow disk; a client may well have given up before."""
ALWAYS_BYTES = 1 << 20
"""Up to this size a comparison takes 2 ms at most."""
SOUND_S = 3600.0
"""How long a large one counts as sound, if nothing tells of a change. Disks do not tell of their own faults."""
_CURE = "POST the request again with ?refresh=true to compute it anew"


class Verified:
    """What was compared and found sound, of one store.

    Parameters
    ----------
    limit
        So many results are remembered.
    """

    def __init__(self, results: ResultStore, *, limit: int = 10_000, now: Callable[[], float] = time.monotonic) -> None:
        self._results = results
        self._limit = limit
        self._now = now
        self._known: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        """By location and digest: the stamp at that time, and until when it counts."""
        self._of_one: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._turn = asyncio.Semaphore(2)  # hashing gigabytes for everyone at once would starve the ledger's disk

    async def check(self, location: str, *, digest: str, size: int) -> None:
        """Return if what lies at `location` is what it was.

        Raises
        ------
        ResultCorrupt
            If it is not, or is not there; the message tells how to compute it anew.
        TimeoutError
            If it cannot be read within `VERIFY_TIMEOUT_S`.
        """
        async with asyncio.timeout(VERIFY_TIMEOUT_S):
            stamp = await self._results.stamp(location)
            if stamp is None:
                raise ResultCorrupt(f"the stored result is missing; {_CURE}")
            if size <= ALWAYS_BYTES:
                await self._compare(location, digest)
            elif not self._is_sound((location, digest), stamp):
                # Of each one at a time: two readers of the same would compare it twice, on two cores.
                lock = self._of_one.setdefault((location, digest), asyncio.Lock())
                async with lock, self._turn:
                    if not self._is_sound((location, digest), stamp):  # else somebody was first
                        await self._compare(location, digest)
                        self._remember((location, digest), stamp)

    async def _compare(self, location: str, digest: str) -> None:
        if not await self._results.verify(location, digest=digest):
            raise ResultCorrupt(f"the stored bytes do not match their digest; {_CURE}")

    def _is_sound(self, key: tuple[str, str], stamp: str) -> bool:
        known = self._known.get(key)
        return known is not None and known[0] == stamp and self._now() < known[1]

    def _remember(self, key: tuple[str, str], stamp: str) -> None:
        # The stamp is that of before: what changed while it was read is compared again.
        self._known[key] = (stamp, self._now() + SOUND_S)
        self._known.move_to_end(key)
        while len(self._known) > self._limit:
            self._known.popitem(last=False)
