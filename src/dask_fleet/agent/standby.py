"""The main of a second forkserver, forked from the first and ready to take its place.

It has what the first one has imported, in the same memory. It serves a socket of its own, to which nobody connects before
the agent has seen the first one dead, and ends when the agent lets go of its pipe, like any forkserver.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection

_DEPTH = sys.getrecursionlimit()
"""Of calls that user code may have."""


def main(listener: socket.socket, alive: Connection) -> None:
    """Serve forks at `listener` until nobody holds the other end of `alive`. Does not return."""
    # These have effects when imported, which are meant for forkservers and their children only.
    from dask_fleet.agent import last_sweep, preload, worker_process

    worker_process.let_the_forkserver_end()  # this is a child of the first one, and must not keep that alive
    last_sweep.take_over()
    preload.take_over()
    # All that is forked from here stands on this stack, and on those of the forkservers before: user code has as deep a one.
    sys.setrecursionlimit(_DEPTH + _frames())
    served, needed = listener.detach(), os.dup(alive.fileno())
    alive.close()
    with suppress(SystemExit):
        forkserver.main(served, needed, [])
    last_sweep.end_all()
    os._exit(0)


def _frames() -> int:
    frame, count = sys._getframe(), 0  # noqa: SLF001 - the only way to walk the stack without reading source files
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count
