"""The queue: priority first, then round robin over users, then first come first served. Pure data structure.

A queued run can only go to an agent that has its service at its version: that pair is its *lane*. Within a lane each
priority has a heap of users ordered by when each was last served, so that a user with one job does not wait behind
another's thousand.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

Lane = tuple[str, str]
"""Service and version."""


class QueuedRun(msgspec.Struct, frozen=True, gc=False):
    """What dispatch must know of a queued run; the rest is in the ledger."""

    seq: int
    run: int
    lane: Lane
    user: str
    priority: int


class FairQueue:
    """See the module's text. All operations are O(log users) and amortised O(1) in the number of runs."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, dict[int, _Level]] = {}
        self._served: dict[str, int] = {}
        self._turn = 0
        self._alive: dict[int, QueuedRun] = {}

    def __len__(self) -> int:
        return len(self._alive)

    def __contains__(self, seq: int) -> bool:
        return seq in self._alive

    def __iter__(self) -> Iterator[QueuedRun]:
        return iter(self._alive.values())

    def lanes(self) -> list[Lane]:
        """Return the lanes in which something may wait."""
        return list(self._lanes)

    def push(self, entry: QueuedRun) -> None:
        """Put a run at the end of its user's line; a run already there is replaced."""
        self.discard(entry.seq)
        self._alive[entry.seq] = entry
        level = self._lanes.setdefault(entry.lane, {}).get(entry.priority)
        if level is None:
            level = self._lanes[entry.lane][entry.priority] = _Level()
        level.push(entry, self._served.get(entry.user, 0))

    def discard(self, seq: int) -> None:
        """Take a run out (cancelled, expired); one that is not there is no error."""
        self._alive.pop(seq, None)  # its place in the line is skipped when its turn comes

    def pop(self, can_run: Callable[[Lane], bool]) -> QueuedRun | None:
        """Take the next run of a lane for which `can_run` holds, or ``None``."""
        best: tuple[int, int, int] | None = None
        chosen: tuple[Lane, int, _Level] | None = None
        for lane in list(self._lanes):
            if not can_run(lane):
                continue
            levels = self._lanes[lane]
            for priority in sorted(levels, reverse=True):
                head = levels[priority].peek(self._served, self._alive)
                if head is None:
                    del levels[priority]
                    continue
                served, entry = head
                rank = (-priority, served, entry.seq)
                if best is None or rank < best:
                    best, chosen = rank, (lane, priority, levels[priority])
                break
            if not levels:
                del self._lanes[lane]
        if chosen is None:
            return None
        self._turn += 1
        entry = chosen[2].take(self._turn)
        self._served[entry.user] = self._turn
        del self._alive[entry.seq]
        if not self._alive:
            # Nobody waits: whoever was served last has no debt any more, and the books do not grow with users.
            self._served.clear()
            self._lanes.clear()
        return entry


class _Level:
    """The users waiting at one priority of one lane."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[QueuedRun]] = {}
        self._heap: list[tuple[int, str]] = []

    def push(self, entry: QueuedRun, served: int) -> None:
        line = self._lines.get(entry.user)
        if line is None:
            self._lines[entry.user] = deque((entry,))
            heapq.heappush(self._heap, (served, entry.user))
        else:
            line.append(entry)

    def peek(self, served: dict[str, int], alive: dict[int, QueuedRun]) -> tuple[int, QueuedRun] | None:
        """Return the head of the line of the user served longest ago, dropping what was discarded."""
        while self._heap:
            turn, user = self._heap[0]
            line = self._lines[user]
            while line and alive.get(line[0].seq) is not line[0]:
                line.popleft()
            if not line:
                heapq.heappop(self._heap)
                del self._lines[user]
            elif served.get(user, 0) != turn:
                heapq.heapreplace(self._heap, (served.get(user, 0), user))  # served from another lane meanwhile
            else:
                return turn, line[0]
        return None

    def take(self, turn: int) -> QueuedRun:
        """Take what `peek` showed, at turn number `turn`."""
        _, user = self._heap[0]
        entry = self._lines[user].popleft()
        heapq.heapreplace(self._heap, (turn, user))
        return entry
