"""Processes made ahead of time, because what they are for shall not wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

_CALM_S = 0.3
"""A spare is replaced when none has been taken for so long: whoever took it has the CPU first."""
_RETRY_S = (1.0, 30.0)
"""First and longest wait after one could not be made."""


class Spares(Generic[T]):
    """Keeps `keep` of something ready.

    Parameters
    ----------
    make
        Makes one that is ready; raises OSError or EOFError if it cannot be had.
    alive
        Whether one is still of use.
    discard
        Ends one that is not needed any more.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[T]],
        *,
        keep: int,
        alive: Callable[[T], bool],
        discard: Callable[[T], None],
        name: str,
    ) -> None:
        self._make = make
        self._keep = keep
        self._alive = alive
        self._discard = discard
        self._name = name
        self._ready: list[T] = []
        self._taken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def begin(self) -> None:
        """Make spares from now on. Twice is harmless."""
        if self._task is None and self._keep and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._fill(), name=f"spare-{self._name}")

    def __len__(self) -> int:
        """How many are ready."""
        return len(self._ready)

    async def take(self) -> T:
        """Return one that is ready, making it if there is no spare."""
        self._taken.set()
        while self._ready:
            one = self._ready.pop(0)
            if self._alive(one):
                return one
        return await self._make()

    def lost(self) -> None:
        """One may have died: look."""
        self._taken.set()

    async def close(self) -> None:
        """Make no more, and end those there are. Twice is harmless."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        while self._ready:
            self._discard(self._ready.pop())

    async def _fill(self) -> None:
        first, longest = _RETRY_S
        wait_s = first
        while True:
            await self._calm()
            self._ready = [one for one in self._ready if self._alive(one)]
            try:
                while len(self._ready) < self._keep and not self._taken.is_set():
                    self._ready.append(await self._make())
            except Exception as exc:  # noqa: BLE001 - without a spare all goes on, only slower
                log.warning("no spare %s, again in %.0f s: %s", self._name, wait_s, exc, extra={"action": "no_spare"})
                await asyncio.sleep(wait_s)
                wait_s = min(longest, wait_s * 2)
                continue
            wait_s = first
            if not self._taken.is_set():
                await self._taken.wait()

    async def _calm(self) -> None:
        """Wait until none has been taken for a while."""
        while True:
            self._taken.clear()
            try:
                async with asyncio.timeout(_CALM_S):
                    await self._taken.wait()
            except TimeoutError:
                return
