"""Who holds the lock of a data folder, and how to signal that process and never another one.

A number in a file proves nothing: its process may have ended, and the number be a stranger's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from pathlib import Path
from typing import Self

from dask_fleet.backends.sessions import members, started_at


def holder_pid(lock: Path) -> int | None:
    """Return the pid that the holder of a lock file has written into it, or ``None`` if nobody holds it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 20).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None  # it has the lock since this moment: ask again
    else:
        return None
    finally:
        os.close(descriptor)


class AgentProcess:
    """A process that is known for sure, with what lives in the session that it leads. Close it after use.

    It is held by a pidfd, which no other process can take over, and its session is told from a later one of the same number
    by the time at which its leader has started.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._started = started_at(pid)
        # An agent started by hand in a shell shares the shell's session, and that is not ours to kill.
        self._leads = _session_of(pid) == pid

    @classmethod
    def open(cls, pid: int) -> Self | None:
        """Take hold of a process whose number cannot be another's, as that of a child not reaped; ``None`` if it is gone."""
        try:
            return cls(pid, os.pidfd_open(pid))
        except ProcessLookupError:
            return None

    @classmethod
    def holding(cls, lock: Path) -> Self | None:
        """Take hold of the process that holds a lock file; ``None`` if there is none, or it is not certain which one it is.

        Raises
        ------
        OSError
            If the lock file cannot be read.
        """
        pid = holder_pid(lock)
        found = None if pid is None else cls.open(pid)
        if found is None:
            return None
        # Asked after it was taken hold of: were it not this one that has the file open, it would have ended, and what
        # is sent to it would reach nobody.
        if _has_open(found.pid, lock) and holder_pid(lock) == found.pid:
            return found
        found.close()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; it lives on."""
        os.close(self._descriptor)

    def ask_to_end(self) -> None:
        """Send it SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to it and to all that lives in its session."""
        self._send(signal.SIGKILL)
        for each in self._members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def left(self) -> bool:
        """Return whether anything of it lives: itself or a process of its session."""
        lives = self._started is not None and started_at(self.pid) == self._started
        return lives or bool(self._members())

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def _members(self) -> list[int]:
        if not self._leads or started_at(self.pid) not in {None, self._started}:
            return []  # the number leads another session by now: nothing of ours is left
        return members(self.pid)


def _has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open, by ``/proc``; what cannot be seen is not so."""
    try:
        there = path.stat()
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names are enough
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(Path(f"/proc/{pid}/fd/{name}").stat(), there):
                    return True
    except OSError:
        return False
    return False


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
