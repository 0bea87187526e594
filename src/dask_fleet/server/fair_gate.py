"""A gate with a few places and a line before it, in which users, and not requests, have their turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Hashable

from dask_fleet.model.errors import CapacityError


class FairGate:
    """``async with gate.place(user):`` waits for a place and has it while the block lasts.

    Parameters
    ----------
    places
        In all.
    per_user
        Of these, at most.
    patience_s
        How long anybody waits.
    refusal
        What is said after that.
    """

    def __init__(self, places: int, *, per_user: int, patience_s: float, refusal: str) -> None:
        self._free = places
        self._per_user = per_user
        self.patience_s = patience_s
        self._refusal = refusal
        self._inside: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        """Users in line, in turn; of each, the turns it waits for."""

    def waiting(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def place(self, user: Hashable) -> AsyncIterator[None]:
        """Wait for a place, and have it.

        Raises
        ------
        CapacityError
            If none became free in time.
        """
        await self._take(user)
        try:
            yield
        finally:
            self._give_back(user)

    async def _take(self, user: Hashable) -> None:
        if self._free and not self._waiting and self._inside[user] < self._per_user:
            self._enter(user)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, OrderedDict())[turn] = None
        self._serve()
        try:
            async with asyncio.timeout(self.patience_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self._give_back(user)  # it came in the very moment of giving up
            else:
                self._forget(user, turn)
                self._serve()
            if isinstance(exc, TimeoutError):
                raise CapacityError(self._refusal, retry_after_s=5) from None
            raise

    def _enter(self, user: Hashable) -> None:
        self._free -= 1
        self._inside[user] += 1

    def _give_back(self, user: Hashable) -> None:
        self._free += 1
        self._inside[user] -= 1
        if not self._inside[user]:
            del self._inside[user]
        self._serve()

    def _serve(self) -> None:
        while self._free:
            # Passes over those only who are inside already, and they are no more than there are places.
            user = next((user for user in self._waiting if self._inside.get(user, 0) < self._per_user), None)
            if user is None:
                return
            turn = next(iter(self._waiting[user]))
            self._forget(user, turn)
            if user in self._waiting:
                self._waiting.move_to_end(user)
            if not turn.done():
                self._enter(user)
                turn.set_result(None)

    def _forget(self, user: Hashable, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(user)
        if turns is not None:
            turns.pop(turn, None)
            if not turns:
                del self._waiting[user]
