"""Imported first by the forkserver, and by nothing else: when it ends, it ends everything that came of it.

It ends when its agent does, however that died: the pipe between them breaks. Worker processes then die with it; but what
user code has started in a session of its own would live on, adopted by nobody who knows it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
import warnings

from dask_fleet.agent.orphans import become_subreaper, children
from dask_fleet.agent.parentage import call_itself

FORKSERVER = "fleet-forksrv"
"""What ``ps`` shows a forkserver as."""
_PID = os.getpid()
_PATIENCE_S = 5.0
"""What cannot be killed in that time hangs in the kernel."""


def end_all() -> None:
    """Kill all children until none is left: those of the dead turn up as ours."""
    if os.getpid() != _PID:
        return  # a fork of user code that ends in the regular way
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        for child in children(_PID):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def take_over(name: str = FORKSERVER) -> None:
    """Let this process, forked from a forkserver, be one itself, to which orphans come. `name` is what ``ps`` shows."""
    global _PID
    _PID = os.getpid()
    with contextlib.suppress(OSError):  # a kernel without it: what is left then is found by the agent's successor
        become_subreaper()
    call_itself(name)


take_over()
# What multiprocessing says of each orphan that it was given and has taken away.
warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
atexit.register(end_all)
