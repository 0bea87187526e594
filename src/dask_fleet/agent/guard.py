"""The main of a guard: a process between a suspect's worker process and the forkserver, so that its parent is nobody else's.

What a function does to the parent of its process (a shell's habit: ``kill $PPID``) hits the parent's other children, too. A
suspect has a parent of its own, which outlives the forkserver and ends with its child or with the agent.

It is a forkserver for one: forked from the agent's, with all that was imported there, it costs one fork more and the memory
that it changes (1.3 MiB). It says on a pipe of its own which pid its child has and how that ended, so that this is heard
when the forkserver is dead.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

GUARD = "fleet-guard"
"""What ``ps`` shows it as."""
NUMBER = struct.Struct("=i")
"""What it says: the pid of its child, and at the end how that ended, negative for a signal."""


def main(channel: socket.socket, tells: Connection, target: Callable[..., None], *args: object) -> None:
    """Fork a child that calls ``target(channel, *args)``, and end after it. Does not return.

    Parameters
    ----------
    tells
        Takes what the guard says. When nobody listens any more, the agent is gone, and everything ends.
    """
    # These have effects when imported, which are meant for forkservers and their children only.
    from dask_fleet.agent import last_sweep, preload, worker_process

    worker_process.let_the_forkserver_end()
    last_sweep.take_over(GUARD)
    preload.take_over()
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        tells.close()
        try:
            target(channel, *args)
        except BaseException:  # noqa: BLE001 - nobody above is left to tell
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    for end in (channel, *args):
        if isinstance(end, socket.socket | Connection):
            end.close()  # or the agent would never hear that the child's are closed
    with suppress(BrokenPipeError):
        os.write(tells.fileno(), NUMBER.pack(child))
        code = _code_of(child, tells.fileno())
        if code is not None:
            os.write(tells.fileno(), NUMBER.pack(code))
    last_sweep.end_all()
    os._exit(0)


def _code_of(child: int, tells: int) -> int | None:
    """Wait for the child; returns its exit code, or ``None`` if nobody listens any more."""
    hears, rings = os.pipe()
    for end in (hears, rings):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(rings, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(hears, select.POLLIN)
    poll.register(tells, 0)  # an error is told unasked
    while True:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:  # orphans of the child come to us, too
                if ended[0] == child:
                    return os.waitstatus_to_exitcode(ended[1])
        for descriptor, _ in poll.poll():
            if descriptor == tells:
                return None
            with suppress(BlockingIOError):
                os.read(hears, 4_096)
