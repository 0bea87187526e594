"""Which processes live, and what they do, where any of them may end in this moment.

A zombie does not live, though its pid is taken until its parent has asked how it ended. What an agent that was killed leaves
is handed to process 1, and that of a container may take seconds to ask.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil


def alive(pids: Iterable[int]) -> list[int]:
    """Return those of `pids` that live."""
    return [pid for pid in pids if _lives(pid)]


def zombies(parent: int) -> list[int]:
    """Return the children of `parent` that have ended without being asked how."""
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def listening(ancestor: int, port: int | None = None) -> list[int]:
    """Return the descendants of `ancestor` that listen on a TCP port, any by default."""
    found = []
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            ports = [one.laddr.port for one in process.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN]
            if port in ports if port is not None else ports:
                found.append(process.pid)
    return found


def shown(pid: int, file: str) -> bytes:
    """Return what the kernel shows of a process; nothing of one that is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
