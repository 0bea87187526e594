"""The memory of large bodies: those who receive them take it step by step, wait for it, and give way to each other.

`shares` decides; here are those who wait, the clock, and what an operator sees.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from types import TracebackType
from typing import Any, Self

from dask_fleet.model.errors import CapacityError
from dask_fleet.server.shares import GiveWay, Share, Shares

log = logging.getLogger(__name__)

SMALL_BODY_BYTES = 64 << 10
"""Up to here a body needs no share, and is decoded on the event loop: in 5 ms at the worst."""
_LOOK_S = 0.25
"""Between two looks for somebody who gives way, while anybody waits."""
_LOGGED_EVERY_S = 10.0

_REFUSALS = {
    GiveWay.SLOW: "the body came slowly, and others waited for its place: send it again",
    GiveWay.HOG: "bodies of yours held more than half of the room for large ones, and others waited: send this one again",
}


class BodyBudget:
    """How many bytes of large bodies may be in memory at a time, besides the one that may always finish.

    Parameters
    ----------
    total_bytes
        Of all but that one.
    patience_s
        How long a body waits for a step.
    """

    def __init__(self, total_bytes: int, *, patience_s: float = 10.0) -> None:
        self._shares = Shares(total_bytes)
        self.patience_s = patience_s
        self._turns: dict[Share, asyncio.Future[None]] = {}
        self._receiving: dict[Share, Reservation] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._now_s = self._seen_s = 0.0
        self._logged_s: float | None = None
        self._unlogged = 0
        self.refused = {"slow": 0, "share": 0, "patience": 0}
        """Bodies sent away, ever: too slow, of a user who held too much, or who waited too long."""

    def reserve(self, user: Hashable = None) -> Reservation:
        """Return the place of one body: ``async with budget.reserve(user) as place``; it takes nothing by itself."""
        return Reservation(self, user)

    def figures(self) -> dict[str, Any]:
        """Return what an operator sees."""
        return {
            "large_body_bytes": self._shares.held_bytes,
            "large_bodies_waiting": len(self._turns),
            "large_bodies_refused_total": dict(self.refused),
        }

    # ------------------------------------------------------------------ for reservations

    async def cover(self, place: Reservation, size: int) -> None:
        """Wait until what `place` holds covers `size`."""
        share = place.share
        if share.gives_way is not None:
            raise self.refusal(share)
        self._receiving[share] = place
        self._wake(self._shares.ask(share, size, self._clock()))
        if not share.wanted:
            return
        turn = self._turns[share] = asyncio.get_running_loop().create_future()
        self._look()
        try:
            async with asyncio.timeout(self.patience_s):
                await turn
        except TimeoutError:
            self._count("patience", share)
            raise CapacityError("too many large bodies are on their way: send this one again", retry_after_s=1) from None
        finally:
            self._turns.pop(share, None)

    def complete(self, place: Reservation) -> None:
        """The body is whole."""
        if place.share.gives_way is not None:
            raise self.refusal(place.share)
        self._shares.complete(place.share)

    def give_back(self, place: Reservation) -> None:
        """Take everything back; once more does nothing."""
        if self._receiving.pop(place.share, None) is not None:
            self._turns.pop(place.share, None)
            self._wake(self._shares.leave(place.share, self._clock()))
            self._look()

    def refusal(self, share: Share) -> CapacityError:
        """Return what is said to who gave way."""
        return CapacityError(_REFUSALS[share.gives_way or GiveWay.SLOW], retry_after_s=2)

    # ------------------------------------------------------------------ who waits, and who gives way

    def _wake(self, served: list[Share]) -> None:
        for share in served:
            turn = self._turns.get(share)
            if turn is not None and not turn.done():
                turn.set_result(None)

    def _look(self) -> None:
        """Send somebody away, if need be, and look again soon for as long as anybody waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._shares.is_wanted:
            return
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        victim = self._shares.victim(self._clock())
        if victim is not None and victim.gives_way is not None:
            self._count(victim.gives_way.value, victim)
            self._receiving[victim].end()

    def _clock(self) -> float:
        """Return seconds of a clock that a pause of the process, or of the loop, hardly moves: it makes nobody slow."""
        real_s = asyncio.get_running_loop().time()
        self._now_s += min(max(real_s - self._seen_s, 0.0), 2 * _LOOK_S)
        self._seen_s = real_s
        return self._now_s

    def _count(self, why: str, share: Share) -> None:
        self.refused[why] += 1
        self._unlogged += 1
        if self._logged_s is None or self._seen_s - self._logged_s >= _LOGGED_EVERY_S:
            log.warning(
                "large bodies were sent away, for others wait",
                extra={
                    "action": "bodies_refused",
                    "why": why,
                    "user": _named(share.user),
                    "bodies": self._unlogged,
                    "since_start": sum(self.refused.values()),
                    "bytes": self._shares.held_bytes,
                    "waiting": len(self._turns),
                },
            )
            self._logged_s, self._unlogged = self._seen_s, 0


class Reservation:
    """The place of one body. Leaving it gives back whatever it holds, once."""

    def __init__(self, budget: BodyBudget, user: Hashable) -> None:
        self._budget = budget
        self.share = Share(user)
        self._ended = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._ended.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.give_back(self)
        try:
            await self._ended.__aexit__(kind, exc, trace)
        except TimeoutError:
            raise self._budget.refusal(self.share) from None

    async def cover(self, size: int) -> None:
        """Wait until there is room for a body of `size` bytes that have come.

        Raises
        ------
        CapacityError
            If there is none in time, or the body has to give way to others.
        """
        if size > SMALL_BODY_BYTES and size > self.share.held:
            await self._budget.cover(self, size)

    def complete(self) -> None:
        """The body is whole: from now on it gives way to nobody.

        Raises
        ------
        CapacityError
            If it has to already.
        """
        self._budget.complete(self)

    def end(self) -> None:
        """Have the block end, wherever it waits."""
        self._ended.reschedule(asyncio.get_running_loop().time())


def _named(user: Hashable) -> str:
    return "/".join(map(str, user)) if isinstance(user, tuple) else str(user)
