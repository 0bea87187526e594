"""Ties a worker process to its forkserver: when that dies, however it dies, the kernel kills the worker. And names it."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; end at once if the parent is dead already.

    The order matters: a parent that died before the request would never trigger it, so the parent is compared afterwards.

    Raises
    ------
    OSError
        If the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(number)}")
    if os.getppid() != expected_parent:
        os._exit(1)


def call_itself(name: str) -> None:
    """Let ``ps`` and ``top`` tell processes apart that share a command line. 15 characters count."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="ascii")
