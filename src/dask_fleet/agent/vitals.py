"""What ``/proc`` says of a living process: whether it is stopped, and how much memory it has."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import msgspec

_PAGE_BYTES = resource.getpagesize()
_STATE, _RSS = 0, 21
"""Places in ``/proc/PID/stat`` behind the process's name, which is in brackets and may hold anything."""

KILL_AT = 0.95
"""The part of its memory limit at which a process is killed: the rest is for what it still allocates until the next look."""
_LOOK_CLOSELY_AT = 0.6
_FASTEST_BYTES_S = 2.0 * (1 << 30)
"""What one process gets from the kernel in a second, in small pages and on a fast machine."""
_LOOK_S = (0.01, 0.02, 0.1, 0.5)
"""Shortest times between looks: at what grows, at what could grow any moment, at what has much and nothing to do; and the
longest. A look takes some 30 µs, so that the first costs 0.3 % of a core for as long as something grows at its limit.
"""
LOOK_AGAIN_S = 0.25
"""When a stopped process is looked at again: a debugger that takes a snapshot stops it for some milliseconds only."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One look at a process."""

    state: str
    """One letter, as ``ps`` shows it."""
    rss_bytes: int

    @property
    def stopped(self) -> bool:
        """Whether it has been stopped, by a signal or a tracer."""
        return self.state in {"T", "t"}


def parse_stat(text: bytes) -> Sample:
    """Return what a line of ``/proc/PID/stat`` says."""
    fields = text[text.rindex(b")") + 2 :].split(None, _RSS + 1)
    return Sample(fields[_STATE].decode("ascii"), int(fields[_RSS]) * _PAGE_BYTES)


class Vitals:
    """A process's numbers, through a file that stays open: one system call a look, and never those of another process
    that got the same pid.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_bytes = 0
        """The most memory (resident set) seen."""
        self.last: Sample | None = None
        self.stopped_since: float | None = None
        """When it was first seen stopped, if it still is."""
        self.seen_at = 0.0
        try:
            self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._stat = -1  # it has ended already

    def look(self, now: float) -> tuple[Sample, Sample | None, float] | None:
        """Return ``(this look, the one before, the seconds between them)``; ``None`` if the process has ended."""
        if self._stat < 0:
            return None
        try:
            sample = parse_stat(os.pread(self._stat, 1024, 0))
        except (OSError, ValueError, IndexError):
            return None
        before, since = self.last, now - self.seen_at
        self.last, self.seen_at = sample, now
        self.peak_bytes = max(self.peak_bytes, sample.rss_bytes)
        if not sample.stopped:
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = now
        return sample, before, since

    def ask_peak(self) -> int:
        """Return the most memory it ever had, also between two looks, as the kernel remembers it."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)
        return self.peak_bytes

    def close(self) -> None:
        """Let go of the file. Twice is harmless."""
        if self._stat >= 0:
            os.close(self._stat)
            self._stat = -1


def next_look_s(used_bytes: int, growth_bytes_s: float, limit_bytes: int, *, busy: bool = True) -> float:
    """Return how long to wait before the next look at a process, in seconds.

    Rarely while there is room. One that has something to do is looked at before it could be at its limit if it began now to
    fill memory as fast as memory can be filled, and three times before it is there at the rate at which it grew last.
    """
    growing, busy_s, closely, rarely = _LOOK_S
    if not limit_bytes:
        return rarely
    room = max(0.0, KILL_AT * limit_bytes - used_bytes)
    if busy:
        wait_s = min(rarely, max(busy_s, room / _FASTEST_BYTES_S))
    else:
        wait_s = closely if used_bytes >= _LOOK_CLOSELY_AT * limit_bytes else rarely
    if growth_bytes_s > 0:
        wait_s = min(wait_s, max(growing, room / growth_bytes_s / 3))
    return wait_s
