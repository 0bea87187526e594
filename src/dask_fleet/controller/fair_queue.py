"""The queue: priority first, then round robin over users, then first come first served. Pure data structure.

A queued run can only go to an agent that has its service at its version, and a suspect only to one that has a process for it
alone: that triple is its *lane*. Within a lane each priority has a heap of users ordered by when each was last served, so
that a user with one job does not wait behind another's thousand. A run that had its turn and lost it to a fault that was not
its own goes to the head of its user's line: it must not wait once more for what was behind it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import msgspec

Owner = tuple[str, str]
"""Tenant and user."""

_DEAD_KEPT = 64
"""So many discarded runs may lie in the lines before they are swept out."""


class Lane(NamedTuple):
    """What an agent must offer to run it."""

    service: str
    version: str
    alone: bool = False
    """A suspect: no other attempt may be in its process."""


class QueuedRun(msgspec.Struct, frozen=True, gc=False):
    """What dispatch must know of a queued run; the rest is in the ledger."""

    seq: int
    run: int
    lane: Lane
    user: str
    priority: int
    tenant: str = "default"

    @property
    def owner(self) -> Owner:
        """Whose turn it takes."""
        return self.tenant, self.user


class FairQueue:
    """See the module's text. All operations are O(log users) and amortised O(1) in the number of runs."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, dict[int, _Level]] = {}
        self._served: dict[Owner, int] = {}
        self._paused: set[Owner] = set()
        self._turn = 0
        self._alive: dict[int, QueuedRun] = {}
        self._dead = 0

    def __len__(self) -> int:
        return len(self._alive)

    def __contains__(self, seq: int) -> bool:
        return seq in self._alive

    def __iter__(self) -> Iterator[QueuedRun]:
        return iter(self._alive.values())

    def lanes(self) -> list[Lane]:
        """Return the lanes in which something may wait."""
        return list(self._lanes)

    def push(self, entry: QueuedRun, *, first: bool = False) -> None:
        """Put a run at the end of its user's line, or at its head; a run already there is replaced.

        Parameters
        ----------
        first
            It had its turn already and lost it by no fault of its own.
        """
        self.discard(entry.seq)
        self._alive[entry.seq] = entry
        self._line_up(entry, first=first)

    def discard(self, seq: int) -> None:
        """Take a run out (cancelled, expired); one that is not there is no error."""
        if self._alive.pop(seq, None) is None:
            return
        self._dead += 1  # its place in the line is skipped when its turn comes
        if not self._alive:
            self._forget()
        elif self._dead > len(self._alive) + _DEAD_KEPT:
            # In a lane that no agent serves no turn ever comes: what was cancelled there must not stay for ever.
            entries = [entry for level in self._levels() for entry in level.entries() if self._is_alive(entry)]
            self._lanes.clear()
            self._dead = 0
            for entry in entries:
                self._line_up(entry)

    def pause(self, owner: Owner) -> None:
        """Let nothing of this user have its turn until `resume`."""
        self._paused.add(owner)

    def resume(self, owner: Owner) -> None:
        """The user takes turns again."""
        self._paused.discard(owner)
        for level in self._levels():
            level.resume(owner, self._served.get(owner, 0))

    def pop(self, can_run: Callable[[Lane], bool]) -> QueuedRun | None:
        """Take the next run of a lane for which `can_run` holds, of a user who is not paused, or ``None``."""
        chosen, _ = self._next(can_run)
        if chosen is None:
            return None
        self._turn += 1
        entry = chosen.take(self._turn)
        self._served[entry.owner] = self._turn
        del self._alive[entry.seq]
        if not self._alive:
            self._forget()
        return entry

    def peek(self, can_run: Callable[[Lane], bool]) -> QueuedRun | None:
        """Return what `pop` would take now, and leave it in the line."""
        return self._next(can_run)[1]

    def _next(self, can_run: Callable[[Lane], bool]) -> tuple[_Level | None, QueuedRun | None]:
        best: tuple[int, int, int] | None = None
        chosen: _Level | None = None
        first: QueuedRun | None = None
        for lane in list(self._lanes):
            if not can_run(lane):
                continue
            levels = self._lanes[lane]
            for priority in sorted(levels, reverse=True):
                head = levels[priority].peek(self._served, self._alive, self._paused)
                if head is None:
                    if levels[priority].is_empty:
                        del levels[priority]
                    continue
                served, entry = head
                rank = (-priority, served, entry.seq)
                if best is None or rank < best:
                    best, chosen, first = rank, levels[priority], entry
                break
            if not levels:
                del self._lanes[lane]
        return chosen, first

    def _forget(self) -> None:
        # Nobody waits: whoever was served last has no debt any more, and the books do not grow with users.
        self._served.clear()
        self._lanes.clear()
        self._dead = 0

    def _line_up(self, entry: QueuedRun, *, first: bool = False) -> None:
        levels = self._lanes.setdefault(entry.lane, {})
        level = levels.get(entry.priority)
        if level is None:
            level = levels[entry.priority] = _Level()
        level.push(entry, self._served.get(entry.owner, 0), first=first)

    def _levels(self) -> Iterator[_Level]:
        for levels in self._lanes.values():
            yield from levels.values()

    def _is_alive(self, entry: QueuedRun) -> bool:
        return self._alive.get(entry.seq) is entry


class _Level:
    """The users waiting at one priority of one lane."""

    def __init__(self) -> None:
        self._lines: dict[Owner, deque[QueuedRun]] = {}
        self._heap: list[tuple[int, Owner]] = []
        self._parked: set[Owner] = set()
        """Paused users, who have a line but no place in the heap."""

    @property
    def is_empty(self) -> bool:
        return not self._lines

    def entries(self) -> Iterator[QueuedRun]:
        for line in self._lines.values():
            yield from line

    def push(self, entry: QueuedRun, served: int, *, first: bool) -> None:
        owner = entry.owner
        line = self._lines.get(owner)
        if line is None:
            self._lines[owner] = deque((entry,))
            heapq.heappush(self._heap, (served, owner))
        elif first:
            line.appendleft(entry)
        else:
            line.append(entry)

    def resume(self, owner: Owner, served: int) -> None:
        if owner in self._parked:
            self._parked.discard(owner)
            heapq.heappush(self._heap, (served, owner))

    def peek(
        self, served: dict[Owner, int], alive: dict[int, QueuedRun], paused: Collection[Owner]
    ) -> tuple[int, QueuedRun] | None:
        """Return the head of the line of the user served longest ago, dropping what was discarded."""
        while self._heap:
            turn, owner = self._heap[0]
            line = self._lines[owner]
            while line and alive.get(line[0].seq) is not line[0]:
                line.popleft()
            if not line:
                heapq.heappop(self._heap)
                del self._lines[owner]
            elif paused and owner in paused:
                heapq.heappop(self._heap)
                self._parked.add(owner)
            elif served.get(owner, 0) != turn:
                heapq.heapreplace(self._heap, (served.get(owner, 0), owner))  # served from another lane meanwhile
            else:
                return turn, line[0]
        return None

    def take(self, turn: int) -> QueuedRun:
        """Take what `peek` showed, at turn number `turn`."""
        _, owner = self._heap[0]
        entry = self._lines[owner].popleft()
        heapq.heapreplace(self._heap, (turn, owner))
        return entry
