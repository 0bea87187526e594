"""Brings worker processes up and their leftovers down. One thread does both, so that neither meets the other halfway."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import secrets
import socket
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from dask_fleet.agent import forked, worker_process
from dask_fleet.agent.last_words import LastWords
from dask_fleet.agent.orphans import end_marked, end_orphans, folder_mark
from dask_fleet.agent.workers import WorkerProcess

log = logging.getLogger(__name__)

_LAST_SWEEP_S = 2.0


class Launcher:
    """Forks worker processes. Its one thread owns the forkserver, because forking waits until that is loaded."""

    def __init__(self, *, name: str, nthreads: int, data_dir: Path, spool: Path, logs: Path) -> None:
        self._name = name
        self._nthreads = nthreads
        self._folder = folder_mark(data_dir)
        self._spool = spool
        self._logs = logs
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(forked.PRELOAD)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="launcher")
        """Whatever else forks from the same forkserver must do it on this thread, see `forked`."""

    @property
    def forkserver_pid(self) -> int | None:
        """The forkserver, if one was started."""
        pid: int | None = _forkserver()._forkserver_pid  # noqa: SLF001
        return pid

    @property
    def folder(self) -> str:
        """What stands for the agent's data folder in `orphans.MARK`."""
        return self._folder

    async def launch(self, *, alone: bool = False, for_lease: bool = False) -> WorkerProcess:
        """Fork a worker process; a dead forkserver is started again.

        Raises
        ------
        OSError, EOFError
            If the forkserver died meanwhile or the host has no process left to give.
        """
        loop = asyncio.get_running_loop()
        token = secrets.token_hex(4)
        ours, theirs = socket.socketpair()
        hears, speaks = multiprocessing.Pipe(duplex=False)
        try:
            ours.setblocking(False)  # noqa: FBT003
            process = await loop.run_in_executor(self.thread, self._fork, theirs, speaks, token, for_lease)
            words = LastWords(os.dup(hears.fileno()))
        except BaseException:
            ours.close()
            raise
        finally:
            for end in (theirs, hears, speaks):
                end.close()
        name = f"{self._name}-{process.pid}"
        return WorkerProcess(
            process, ours, words, name=name, token=token, nthreads=self._nthreads, alone=alone, for_lease=for_lease
        )

    async def end_orphans(self) -> int:
        """Kill what ended worker processes have left; return how much there was. Again until there is nothing."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._end_orphans)

    def end_predecessors_orphans(self) -> None:
        """Kill what worker processes of an earlier agent of this folder have left."""
        self.thread.submit(self._end_marked)

    def close(self) -> None:
        """End the forkserver; all workers must have ended. Blocks."""

        def stop() -> None:
            _forkserver()._stop()  # noqa: SLF001
            until = time.monotonic() + _LAST_SWEEP_S
            while self._end_orphans() and time.monotonic() < until:
                time.sleep(0.005)

        self.thread.submit(stop)
        self.thread.shutdown(wait=True)

    # ------------------------------------------------------------------ on the launcher's thread

    def _fork(self, channel: socket.socket, words: Connection, token: str, for_lease: bool) -> ForkServerProcess:  # noqa: FBT001
        options = worker_process.WorkerOptions(
            name=self._name,
            nthreads=self._nthreads,
            spool=self._spool,
            logs=self._logs,
            token=token,
            folder=self._folder,
            for_lease=for_lease,
        )
        process = self._context.Process(target=worker_process.main, args=(channel, words, options), name="worker")
        # A child imports the main module of its parent, to find what it defines; ours defines nothing a worker needs.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
        forked.remember(process.pid or 0)
        return process

    def _end_orphans(self) -> int:
        living = forked.living()
        count, server = 0, self.forkserver_pid
        if server is not None:
            count += end_orphans(server, known=living, spared=living)
        # This process starts nothing but the forkserver and what multiprocessing starts for itself.
        own = {server, getattr(resource_tracker, "_resource_tracker")._pid}  # noqa: B009, SLF001
        count += end_orphans(os.getpid(), known={pid for pid in own if pid}, reap=True)
        if count:
            log.info("orphans ended", extra={"action": "orphans_ended", "orphans": count})
        return count

    def _end_marked(self) -> None:
        if count := end_marked(self._folder):
            log.warning("orphans of an earlier agent ended", extra={"action": "orphans_ended", "orphans": count})


def _forkserver() -> Any:
    return getattr(forkserver, "_forkserver")  # noqa: B009 - private, and the only way to its pid and its end
