"""What this agent has had its forkserver fork and that lives: any other child of the forkserver is an orphan.

The forkserver's handle is process-wide, so this is, too. Everything that forks does so on the launcher's one thread and
calls `remember` there; sweeps for orphans run on the same thread, so that none meets a child that is not remembered yet.
"""

from __future__ import annotations

import fcntl
import termios
import threading
from collections import Counter
from multiprocessing.context import ForkServerProcess

PRELOAD = ["dask_fleet.agent.last_sweep", "dask_fleet.agent.preload"]
"""What the forkserver imports, the first before all else; whoever may start it must say the same."""

_lock = threading.Lock()
_living: Counter[int] = Counter()
"""Counted, because a pid can be given anew before the end of the one before has been told."""


def remember(pid: int) -> None:
    """A child was forked. Call it on the thread that forks."""
    with _lock:
        _living[pid] += 1


def forget(pid: int) -> None:
    """A child has ended; called once for each. What it has left is found by the next sweep."""
    with _lock:
        _living[pid] -= 1
        if _living[pid] <= 0:
            del _living[pid]


def living() -> frozenset[int]:
    """Return the pids of all that live."""
    with _lock:
        return frozenset(_living)


def exit_code(process: ForkServerProcess) -> int | None:
    """Return the exit code that the forkserver has told, negative for a signal; ``None`` if it has not, or died before.

    ``multiprocessing`` makes 255 of the latter, which a function can leave with, too: so look whether anything was told.
    """
    told = bytearray(4)
    fcntl.ioctl(process.sentinel, termios.FIONREAD, told)
    return process.exitcode if any(told) else None
