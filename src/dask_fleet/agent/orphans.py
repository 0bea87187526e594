"""Ends what user code has started and left behind, however well it hid: in a session of its own, forked twice.

A child whose parent dies is handed to the nearest ancestor that is a *subreaper*. Forkserver and agent are: so whatever a
dead worker process leaves, at any depth, turns up as a child of its forkserver, and what a dead forkserver leaves as a child
of the agent. There is nowhere else to go, and no list to keep. Whoever finds a child it has not made ends it.

Only one case is left: agent and forkserver killed in the same moment. Then the next agent of the same data folder finds the
leftovers by a mark in their environment.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

MARK = "WORKER_OF_FLEET"
"""Variable that user code inherits: ``<folder>:<pid of its worker process>``. Not ``FLEET_…``: those are settings."""
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def become_subreaper() -> None:
    """Let this process be given the orphans among its descendants. Its children do not inherit the role.

    Raises
    ------
    OSError
        If the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER) failed: {os.strerror(number)}")


def folder_mark(data_dir: Path) -> str:
    """Return what stands for an agent's data folder in the mark of its worker processes."""
    return hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]


def children(pid: int) -> list[int]:
    """Return the pids of a process's children, zombies too; none if it has ended."""
    found: list[int] = []
    try:
        # A child belongs to the thread that forked it.
        for thread in os.scandir(f"/proc/{pid}/task"):
            found += [int(child) for child in Path(thread.path, "children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        if Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
            return found  # it, or a thread of it, has ended meanwhile
        return [each for each in _pids() if _status(each)[1] == pid]  # a kernel without these files
    except OSError:
        return found
    return found


def end_orphans(parent: int, *, known: Collection[int], spared: Collection[int] = (), reap: bool = False) -> int:
    """Kill the children of `parent` that are not `known`, with all their descendants; return how many there were.

    Call it again until there are none: a dying process's children need a moment to turn up. So one that has died since its
    parent was looked at counts, too: what it has left was not seen.

    Parameters
    ----------
    spared
        Living worker processes: what one of them has detached is left alone while it lives.
    reap
        Whether `parent` is this process, which then takes the dead away.
    """
    count = 0
    for child in children(parent):
        if child in known:
            continue
        if reap:
            try:
                if os.waitpid(child, os.WNOHANG)[0]:
                    count += 1
                    continue
            except ChildProcessError:
                continue
        if (dead := _status(child)[0] in {"Z", "X", ""}) or worker_of(child) in spared:
            count += dead
            continue
        count += 1
        _kill_tree(child)
    return count


def end_marked(folder: str) -> int:
    """Kill what worker processes of an earlier agent of this folder have left; return how many there were."""
    count = 0
    for pid in _pids():
        if pid != os.getpid() and (mark := _mark_of(pid)) is not None and mark.partition(":")[0] == folder:
            count += 1
            _kill(pid)
    return count


def worker_of(pid: int) -> int:
    """Return the pid of the worker process whose code has started this one; 0 if it does not tell.

    It tells if it has executed a program: a mere fork shows the environment its ancestor was started with.
    """
    _folder, _, number = (_mark_of(pid) or "").partition(":")
    return int(number) if number.isdigit() else 0


def _mark_of(pid: int) -> str | None:
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    start = f"{MARK}=".encode()
    for variable in environ.split(b"\0"):
        if variable.startswith(start):
            return variable[len(start) :].decode("ascii", "replace")
    return None


def _kill_tree(pid: int) -> None:
    for child in children(pid):
        _kill_tree(child)
    _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        # It has become another user (sudo): only a control group could end it.
        log.warning("an orphan cannot be ended: it runs as another user", extra={"action": "orphan_kept", "pid": pid})


def _status(pid: int) -> tuple[str, int]:
    """Return ``(state, parent)``; the state is empty if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return "", 0
    state, parent = text[text.rindex(b")") + 2 :].split(None, 2)[:2]
    return state.decode("ascii"), int(parent)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit())
