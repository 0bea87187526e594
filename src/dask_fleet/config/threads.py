"""The threads of a process that lives long, for calls that block: all of them are there from the start.

By default one is started when work finds the others busy. On a host without a process left to give, which is what a job that
forks without end makes of it, that would be the moment in which an agent can remove no folder and a server read no result.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from dask_fleet.config.cpus import available_cpus

_MOST = 32
_MORE_THAN_CPUS = 4


def have_threads(loop: asyncio.AbstractEventLoop, *, threads: int | None = None) -> None:
    """Give `loop` the default executor of as many threads as ``asyncio`` would allow it, each of them started.

    Raises
    ------
    RuntimeError
        If the host has not so many left to give.
    """
    count = threads or min(_MOST, available_cpus() + _MORE_THAN_CPUS)
    executor = ThreadPoolExecutor(count, thread_name_prefix="blocking")
    all_there = threading.Barrier(count)
    try:
        for _ in range(count):  # each waits for the others, so that none can do the work of two
            executor.submit(all_there.wait)
    except BaseException:
        all_there.abort()
        executor.shutdown(wait=False)
        raise
    loop.set_default_executor(executor)
