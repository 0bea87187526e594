"""Who tells the agent that a child of its forkserver has ended, and how: the forkserver, or a guard (see `guard`)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Protocol

from dask_fleet.agent import forked, forkservers
from dask_fleet.agent.guard import NUMBER

_PID_S = 10.0
"""How long a guard may take to fork: it has nothing else to do."""


class ExitNotice(Protocol):
    """Where the end of a child is told."""

    pid: int
    """Of the child."""
    sentinel: int
    """Descriptor that becomes readable when it has ended."""
    forkserver: int
    """Pid of what it, or its guard, was forked from."""

    def exit_code(self) -> int | None:
        """Return how it has ended, negative for a signal; ``None`` if whoever was to tell died before."""
        ...

    def wake(self) -> None:
        """See to it that whoever is to tell is not stopped, as far as nobody else does."""
        ...

    def close(self) -> None:
        """The end was heard; called once."""
        ...


class ToldByForkserver:
    """Of a child that the forkserver has forked. A stopped forkserver is the watch's business.

    Make it on the thread that forks, right after the fork.
    """

    def __init__(self, process: ForkServerProcess) -> None:
        self.pid = process.pid or 0
        self.sentinel = process.sentinel
        self.forkserver = forkservers.pid() or 0
        self._process = process

    def exit_code(self) -> int | None:
        """Return what the forkserver has told."""
        return forked.exit_code(self._process)

    def wake(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Forget the child."""
        self._process.join(0)
        self._process.close()
        forked.forget(self.pid)


class ToldByGuard:
    """Of a child with a parent of its own. It says how the child ended also when the forkserver is no more.

    Make it on the thread that forks, right after the fork: it waits until the guard has forked.

    Raises
    ------
    OSError, EOFError
        If the guard could not fork, or died before it had.
    """

    def __init__(self, guard: ForkServerProcess, hears: Connection) -> None:
        self._guard = guard
        self._guard_pid = guard.pid or 0
        try:
            if not select.select([hears], [], [], _PID_S)[0]:
                raise OSError("the guard of a worker process did not fork it in time")
            self.pid = _number(hears.fileno()) or 0
            if not self.pid:
                raise EOFError("the guard of a worker process died before it had forked it")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guard_pid, signal.SIGKILL)
            forked.forget(self._guard_pid)
            raise
        forked.remember(self.pid)
        self.sentinel = os.dup(hears.fileno())
        self.forkserver = forkservers.pid() or 0

    def exit_code(self) -> int | None:
        """Return what the guard has told; ``None`` if it was killed."""
        return _number(self.sentinel)

    def wake(self) -> None:
        """Let the guard go on: its child may have stopped it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._guard_pid, signal.SIGCONT)

    def close(self) -> None:
        """Forget both. The guard ends what the child has left; if it cannot, the next sweep does, and finds it, too."""
        os.close(self.sentinel)
        with contextlib.suppress(ValueError):  # it lives a moment longer; the handle goes with its last reference
            self._guard.close()
        forked.forget(self._guard_pid)
        forked.forget(self.pid)


def _number(descriptor: int) -> int | None:
    told = os.read(descriptor, NUMBER.size)
    return NUMBER.unpack(told)[0] if len(told) == NUMBER.size else None
