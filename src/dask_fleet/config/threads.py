"""The threads of a process that lives long, for calls that block: all of them are there from the start.

A pool starts one when work finds the others busy. On a host without a thread left to give, which is what a job that forks
without end makes of it, that would be the moment in which an agent can remove no folder and a server read no result.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from dask_fleet.config.cpus import available_cpus
from dask_fleet.model.errors import SetupError

_MOST = 32
_MORE_THAN_CPUS = 4


def started(threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of so many threads, each of them started.

    Raises
    ------
    SetupError
        If the host has not so many left to give.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    all_there = threading.Barrier(threads)
    try:
        for _ in range(threads):  # each waits for the others, so that none can do the work of two
            pool.submit(all_there.wait)
    except RuntimeError as exc:
        all_there.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise SetupError(
            f"this host gives no more threads ({exc}): see what uses them up (`ps -eLf`), or raise the limit (`ulimit -u`, "
            "or the pids limit of the container)"
        ) from exc
    return pool


def have_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Give `loop` a default executor of CPUs + 4 threads, at most 32, like that of ``asyncio``; all of them are started.

    Raises
    ------
    SetupError
        If the host has not so many left to give.
    """
    loop.set_default_executor(started(min(_MOST, available_cpus() + _MORE_THAN_CPUS), "blocking"))
