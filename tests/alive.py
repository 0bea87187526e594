"""Which processes live: a zombie does not, though its pid is taken until its parent has asked how it ended.

What an agent that was killed leaves is handed to process 1, and that of a container may take seconds to ask.
"""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def alive(pids: Iterable[int]) -> list[int]:
    """Return those of `pids` that live."""
    return [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
