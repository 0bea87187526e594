"""The memory of what a worker process has started: subprocesses, and the workers of `multiprocessing`.

Resident sets cannot be summed up: a forked child shares nearly all of its own with its parent, and each would count it. So
their sum only says that it is time to *weigh* the family: by the kernel's proportional sets (PSS), in which a page that four
processes share is a quarter of one for each. That costs milliseconds a gibibyte, and is done beside the event loop, seldom.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

from dask_fleet.agent.orphans import children

_PAGE_BYTES = resource.getpagesize()
_SCAN_S = (0.1, 2.0)
"""Time between two looks for children, while the process has something to do and while it has not."""
_EACH_S = 0.001
"""A family is looked at no more often than once in so long for each of its members: 1 % of a core or so for a large one."""
_WEIGH_PART = 20
"""A family that was weighed in one second is not weighed again for so many."""


class Descendants:
    """What one process has started, at any depth and in any session, as long as its parents live."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members: list[int] = []
        self._scan_at = 0.0
        self._look_at = 0.0
        self._weigh_at = 0.0
        self._off_bytes = 0
        """How much less than its resident sets the family weighed when it was last weighed."""
        self.rss_bytes = 0
        """Sum of their resident sets, at the last look."""

    def __len__(self) -> int:
        return len(self._members)

    def look(self, now: float, *, busy: bool) -> int:
        """Return the sum of their resident sets in bytes; 0 in no time if there are none, as nearly always."""
        if now >= self._scan_at:
            self._scan_at = now + _SCAN_S[0 if busy else 1]
            self._members = descendants(self._pid)
            if not self._members:
                self._off_bytes = 0
        if not self._members:
            self.rss_bytes = 0
        elif now >= self._look_at:
            self._look_at = now + _EACH_S * len(self._members)
            self.rss_bytes = sum(rss_bytes(pid) for pid in self._members)
        return self.rss_bytes

    def estimate(self, own_rss_bytes: int) -> int:
        """Return what the process and they are thought to have: their resident sets, less what was too much in these when
        they were last weighed.
        """
        return max(own_rss_bytes, own_rss_bytes + self.rss_bytes - self._off_bytes)

    def may_weigh(self, now: float) -> bool:
        """Whether it is time to weigh them again."""
        return bool(self._members) and now >= self._weigh_at

    def weigh(self) -> tuple[int, int, float]:
        """Return ``(PSS, RSS, seconds of CPU)`` of the process and all of them. Blocks for milliseconds a gibibyte."""
        began = time.thread_time()
        family = [self._pid, *descendants(self._pid)]
        return sum(pss_bytes(pid) for pid in family), sum(rss_bytes(pid) for pid in family), time.thread_time() - began

    def weighed(self, pss: int, rss: int, took_s: float, now: float) -> None:
        """Take note of what `weigh` has returned."""
        self._off_bytes = max(0, rss - pss)
        self._weigh_at = now + _WEIGH_PART * took_s


def descendants(pid: int) -> list[int]:
    """Return the pids of a process's children, theirs, and so on."""
    found, next_ = [], children(pid)
    while next_:
        found += next_
        next_ = [grandchild for child in next_ for grandchild in children(child)]
    return found


def rss_bytes(pid: int) -> int:
    """Return the resident set of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def pss_bytes(pid: int) -> int:
    """Return the proportional set of a process, its resident one where the kernel does not tell (another user's); 0 if it
    has ended.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return rss_bytes(pid)
