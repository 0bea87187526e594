"""What lives in a process session: everything an agent has started, however deep, carries its number."""

from __future__ import annotations

import os
from pathlib import Path

_ENDED = {"Z", "X"}
"""States of processes that have ended and hold nothing."""


def members(session: int) -> list[int]:
    """Return the pids of the living processes of a session (zombies have ended and hold nothing). Reads ``/proc``."""
    found: list[int] = []
    for entry in os.scandir("/proc"):
        fields = _fields(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None and int(fields[3]) == session and fields[0] not in _ENDED:
            found.append(int(entry.name))
    return found


def started_at(pid: int) -> int | None:
    """Return when a living process started, in the kernel's ticks since boot; ``None`` if there is none of that number.

    With its number this names a process for good: the number alone is given again.
    """
    fields = _fields(pid)
    return None if fields is None or fields[0] in _ENDED else int(fields[19])


def _fields(pid: int) -> list[str] | None:
    """Return ``/proc/PID/stat`` from the state on; ``None`` for a process that has ended meanwhile."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # pid (name) state ppid pgrp session …; the name may contain spaces and brackets
    return stat.rpartition(")")[2].split()
