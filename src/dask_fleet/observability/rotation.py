"""Log files of which a few older ones are kept: ``agent.log.1`` is the one before ``agent.log``."""

from __future__ import annotations

import os
from pathlib import Path

KEPT = 3
"""Older ones."""


def rotate(path: Path) -> None:
    """Move `path` and its predecessors on by one; the oldest goes. Whoever has one of them open goes on writing into it.

    Raises
    ------
    OSError
        If the folder cannot be changed.
    """
    for number in range(KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))


def open_log(path: Path) -> int:
    """Open a log to append to, readable by its owner only, and return the descriptor.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
