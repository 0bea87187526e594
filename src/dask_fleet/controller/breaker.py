"""Pauses a user whose jobs cost one worker process after the other, so that others keep theirs. Pure: time is given to it.

A process counts against a user if all attempts that died with it were that user's: else nobody knows whose fault it was, and
a neighbour would be paused for what somebody else did. Processes that died with their forkserver count as one. Of a process
that was killed because an attempt ran past its time-out, everybody knows: it counts against the user of that attempt.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import msgspec

from dask_fleet.controller.fair_queue import Owner

DEATHS = 10
"""So many worker processes,"""
WITHIN_S = 60.0
"""killed within so long,"""
PAUSE_S = 60.0
"""pause their user for so long."""

ProcessKey = tuple[str, str]
"""Agent and worker process."""


class Death(msgspec.Struct, gc=False):
    """A worker process that died, and with whose attempts."""

    at: float
    owners: set[Owner]


class Pause(msgspec.Struct, frozen=True, gc=False):
    """Why nothing of a user is started now."""

    until: float
    """By the monotonic clock."""
    why: str


class Breaker:
    """Counts the deaths of worker processes by user. Not durable: a server that was started again begins with no grudge."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[ProcessKey, Death] = OrderedDict()
        self._of: dict[Owner, deque[Death]] = {}
        self._pauses: dict[Owner, Pause] = {}

    @property
    def pauses(self) -> dict[Owner, Pause]:
        """Who is paused, and until when."""
        return self._pauses

    def died(self, process: ProcessKey, owner: Owner, now: float) -> None:
        """Note that an attempt of `owner` was in a process that died: alone, or with others that are told of as well."""
        self._forget(now)
        death = self._deaths.get(process)
        if death is None:
            death = self._deaths[process] = Death(now, set())
        if owner not in death.owners:
            death.owners.add(owner)
            self._of.setdefault(owner, deque()).append(death)

    def judge(self, owner: Owner, now: float) -> Pause | None:
        """Return the pause that begins now for `owner`, if any. To be asked when all attempts of a death were noted."""
        if owner in self._pauses:
            return None
        killed = sum(len(death.owners) == 1 and death.at > now - WITHIN_S for death in self._of.get(owner, ()))
        if killed < DEATHS:
            return None
        pause = self._pauses[owner] = Pause(
            now + PAUSE_S, f"jobs of this user have cost {killed} worker processes within {WITHIN_S:g} s"
        )
        for death in self._of.pop(owner):
            death.owners.discard(owner)  # paid for: after the pause counting begins anew
            death.owners.add(("", ""))  # yet it stays a death of somebody, not of those who may be left
        return pause

    def resume(self, now: float) -> list[Owner]:
        """End the pauses whose time is over; return whose."""
        over = [owner for owner, pause in self._pauses.items() if pause.until <= now]
        for owner in over:
            del self._pauses[owner]
        return over

    def _forget(self, now: float) -> None:
        while self._deaths:
            process, death = next(iter(self._deaths.items()))
            if death.at > now - WITHIN_S:
                return
            del self._deaths[process]
            for owner in death.owners:
                line = self._of.get(owner)
                if line is not None:
                    while line and line[0].at <= now - WITHIN_S:
                        line.popleft()
                    if not line:
                        del self._of[owner]
