"""What lives in a process session: everything an agent has started, however deep, carries its number."""

from __future__ import annotations

import os
from pathlib import Path


def members(session: int) -> list[int]:
    """Return the pids of the living processes of a session (zombies have ended and hold nothing). Reads ``/proc``."""
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(errors="replace")
        except OSError:
            continue  # ended meanwhile
        # pid (name) state ppid pgrp session …; the name may contain spaces and brackets
        state, _ppid, _pgrp, number = stat.rpartition(")")[2].split()[:4]
        if int(number) == session and state not in {"Z", "X"}:
            found.append(int(entry.name))
    return found
