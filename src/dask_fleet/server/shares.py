"""Who may have how much of the memory for large bodies: a pure account, which knows neither tasks nor the clock.

What has arrived counts, in steps, and never what was announced: whoever announces much and sends little holds little. There
are rules for four situations.

* A new body begins if its user then holds no more than what is still free. So each of some users who send all they can
  leaves room for the others, and for what has begun.
* A body that has begun grows while there is room; beyond half of all, its user must be the only one who has any or waits.
* Bodies that all have begun and none of which can grow would wait for each other for ever. So as soon as somebody waits, the
  one that began first is the *elder*, which counts as nothing and is never refused a step. There is one at a time.
* While somebody waits, whoever has not brought a step in `SLOW_AFTER_S` gives way; and when somebody has waited for
  `HOG_AFTER_S`, so does, whatever its pace, a body of another user who holds more than half.

Users have their turns round and round; of one user, what has begun comes first.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice

STEP_BYTES = 64 << 10
SLOW_AFTER_S = 2.0
"""For a step: the pace at which a megabyte comes in 30 s, the time that a body has."""
HOG_AFTER_S = 1.0


class GiveWay(enum.Enum):
    """Why a body is sent away for others."""

    SLOW = "slow"
    HOG = "share"
    """Its user holds more than half."""


class Line:
    """What there is of one user."""

    __slots__ = ("coming", "growing", "held", "members", "receiving", "user")

    def __init__(self, user: Hashable) -> None:
        self.user = user
        self.held = 0
        """Bytes, without the elder's."""
        self.members = 0
        self.receiving: OrderedDict[Share, None] = OrderedDict()
        """Whose client is to send the next step: the slowest is the first."""
        self.growing: OrderedDict[Share, None] = OrderedDict()
        """In line for a further step."""
        self.coming: OrderedDict[Share, None] = OrderedDict()
        """In line for the first one."""

    @property
    def head(self) -> Share | None:
        """Whose turn it is when it is this user's."""
        for share in self.growing or self.coming:
            return share
        return None


class Share:
    """What one body holds."""

    __slots__ = ("gives_way", "held", "line", "since", "user", "wanted")

    def __init__(self, user: Hashable) -> None:
        self.user = user
        self.line: Line | None = None
        self.held = 0
        self.wanted = 0
        """Bytes that it is in line for."""
        self.since = 0.0
        """When it began to receive, or to wait."""
        self.gives_way: GiveWay | None = None


class Shares:
    """The account. What changes it returns the shares that may go on by that.

    Parameters
    ----------
    total_bytes
        All there is, besides the elder's.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._elder: Share | None = None
        self._leaving: Share | None = None
        self._holders: OrderedDict[Share, None] = OrderedDict()
        """The oldest is the first."""
        self._lines: dict[Hashable, Line] = {}
        self._waiting: OrderedDict[Hashable, Line] = OrderedDict()
        """Users with somebody in line, in turn."""

    @property
    def held_bytes(self) -> int:
        """What all hold."""
        return self._used + (self._elder.held if self._elder is not None else 0)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def ask(self, share: Share, size: int, now: float) -> list[Share]:
        """Ask for what covers a body of `size`: it waits for that unless it is among those returned, or held enough."""
        if size <= share.held:
            return []
        line = share.line
        if line is None:
            line = share.line = self._lines.setdefault(share.user, Line(share.user))
            line.members += 1
        line.receiving.pop(share, None)
        share.wanted = -(-(size - share.held) // STEP_BYTES) * STEP_BYTES
        share.since = now
        (line.growing if share.held else line.coming)[share] = None
        self._waiting.setdefault(line.user, line)
        return self._serve(now)

    def complete(self, share: Share) -> None:
        """A body is whole: it holds its share until it leaves, which is our affair and no longer its client's."""
        if share.line is not None:
            share.line.receiving.pop(share, None)

    def leave(self, share: Share, now: float) -> list[Share]:
        """Take back all that a body holds, and its place in line; once more does nothing."""
        line, share.line = share.line, None
        if line is None:
            return []
        self._unqueue(line, share)
        line.receiving.pop(share, None)
        self._holders.pop(share, None)
        if self._elder is share:
            self._elder = None
        else:
            self._used -= share.held
            line.held -= share.held
        if self._leaving is share:
            self._leaving = None
        share.held = share.wanted = 0
        line.members -= 1
        if not line.members:
            del self._lines[line.user]
        return self._serve(now)

    def victim(self, now: float) -> Share | None:
        """Return the body that must give way now, if any, and note so on it: the next one is found when it has left."""
        if self._leaving is not None or not self._waiting:
            return None
        found = self._slow(now)
        if found is not None:
            found.gives_way = GiveWay.SLOW
        else:
            found = self._of_a_hog(now)
            if found is None:
                return None
            found.gives_way = GiveWay.HOG
        self._leaving = found
        return found

    # ------------------------------------------------------------------ who gives way

    def _slow(self, now: float) -> Share | None:
        found: Share | None = None
        most = -1
        for line in self._holding():
            slowest = next(iter(line.receiving), None)
            if slowest is not None and now - slowest.since >= SLOW_AFTER_S:
                held = line.held + (self._elder.held if self._elder is not None and self._elder.line is line else 0)
                if held > most:
                    found, most = slowest, held
        return found

    def _of_a_hog(self, now: float) -> Share | None:
        hog = next((line for line in self._holding() if line.held > self._total // 2), None)
        if hog is None:
            return None
        for line in islice(self._waiting.values(), 2):  # whoever has waited longest is the first, unless it is the hog
            head = line.head
            if line is not hog and head is not None and now - head.since >= HOG_AFTER_S:
                waits, receives = reversed(hog.growing), iter(hog.receiving)
                return next((share for each in (waits, receives) for share in each if share is not self._elder), None)
        return None

    def _holding(self) -> Iterator[Line]:
        """Each user who holds something: some hundred at most, whoever waits."""
        seen = set()
        for share in self._holders:
            line = share.line
            if line is not None and line.user not in seen:
                seen.add(line.user)
                yield line

    # ------------------------------------------------------------------ whose turn it is

    def _serve(self, now: float) -> list[Share]:
        served: list[Share] = []
        while self._waiting:
            share = self._next()
            if share is not None:
                self._grant(share, now)
                served.append(share)
            elif self._elder is None:
                self._appoint()
            else:
                break
        return served

    def _next(self) -> Share | None:
        elder = self._elder
        if elder is not None and elder.wanted:
            return elder
        free = self._total - self._used
        for line in self._waiting.values():
            share = line.head
            if share is None:
                continue
            held = line.held + share.wanted
            if share.held:
                if share.wanted > free:
                    return None  # nobody passes it: else it would wait as long as others want less
                if held <= self._total // 2 or (self._used == line.held and len(self._waiting) == 1):
                    return share
            elif held <= free:
                return share
            elif not line.held:
                return None
        return None

    def _appoint(self) -> None:
        """Make the oldest the elder, which frees what it has."""
        elder = next(iter(self._holders), None)
        if elder is None:  # more than all there is: it can have that, alone
            elder = next(iter(self._waiting.values())).head
        elif elder.line is not None:
            self._used -= elder.held
            elder.line.held -= elder.held
        self._elder = elder

    def _grant(self, share: Share, now: float) -> None:
        line = share.line
        assert line is not None, "who waits is in a line"
        self._unqueue(line, share)
        if line.user in self._waiting:
            self._waiting.move_to_end(line.user)
        if share is not self._elder:
            self._used += share.wanted
            line.held += share.wanted
        share.held += share.wanted
        share.wanted = 0
        share.since = now
        self._holders.setdefault(share)
        line.receiving[share] = None

    def _unqueue(self, line: Line, share: Share) -> None:
        line.growing.pop(share, None)
        line.coming.pop(share, None)
        if not (line.growing or line.coming):
            self._waiting.pop(line.user, None)
