"""Brings worker processes up and their leftovers down. One thread does both, so that neither meets the other halfway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import time
from multiprocessing import resource_tracker
from pathlib import Path

from dask_fleet.agent import forked, forkservers, worker_process
from dask_fleet.agent.forker import Forker
from dask_fleet.agent.orphans import end_marked, end_orphans, folder_mark
from dask_fleet.agent.stray_output import StrayOutput
from dask_fleet.agent.worker_frames import decode_from_worker
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.config.threads import started

log = logging.getLogger(__name__)

_LAST_SWEEP_S = 2.0


class Launcher:
    """Forks worker processes. Its one thread owns the forkservers, because forking waits until that is loaded.

    Parameters
    ----------
    has_other_children
        Whether this process has children of other makes, as an agent has not: then an unknown one is no orphan.
    """

    def __init__(
        self, *, name: str, nthreads: int, data_dir: Path, spool: Path, logs: Path, has_other_children: bool = False
    ) -> None:
        self._name = name
        self._nthreads = nthreads
        self._folder = folder_mark(data_dir)
        self._spool = spool
        self._logs = logs
        self._has_other_children = has_other_children
        self._began = False
        self._thread = started(1, "launcher")
        self.forker = Forker(self._thread)
        """Whatever else forks in this process must do it by this one, see `forked`."""

    @property
    def forkserver_pid(self) -> int | None:
        """The forkserver, if one was started."""
        return forkservers.pid()

    @property
    def folder(self) -> str:
        """What stands for the agent's data folder in `orphans.MARK`."""
        return self._folder

    async def launch(self, *, alone: bool = False, for_lease: bool = False) -> WorkerProcess:
        """Fork a worker process, one for a suspect with a guard; a dead forkserver is replaced.

        Raises
        ------
        OSError, EOFError
            If the forkserver died meanwhile or the host has no process left to give.
        """
        options = worker_process.WorkerOptions(
            name=self._name,
            nthreads=self._nthreads,
            spool=self._spool,
            logs=self._logs,
            token=secrets.token_hex(4),
            folder=self._folder,
            for_lease=for_lease,
        )
        hears, speaks = multiprocessing.Pipe(duplex=False)
        with hears, speaks:
            stray = StrayOutput(os.dup(hears.fileno()))
            try:
                child = await self.forker.fork(
                    worker_process.main, speaks, options, name="worker", decode=decode_from_worker, guarded=alone
                )
            except BaseException:
                stray.close()
                raise
        self._began = True
        self.have_standby()
        return WorkerProcess(
            child, stray, name=f"{self._name}-{child.pid}", token=options.token, nthreads=self._nthreads, alone=alone,
            for_lease=for_lease, forkserver=child.forkserver,
        )

    def have_standby(self) -> None:
        """See to it that another forkserver waits for the death of the one in use. Returns at once."""
        if not self._began:
            return  # nobody has forked yet; there is nothing to fork it from
        with contextlib.suppress(RuntimeError):  # at the end, the thread takes nothing more
            self._thread.submit(forkservers.have_standby)

    async def end_orphans(self) -> int:
        """Kill what ended worker processes have left; return how much there was. Again until there is nothing."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._end_orphans)

    def end_predecessors_orphans(self) -> None:
        """Kill what worker processes of an earlier agent of this folder have left."""
        self._thread.submit(self._end_marked)

    def close(self) -> None:
        """End the forkservers; all workers must have ended. Blocks."""

        def stop() -> None:
            forkservers.stop()
            until = time.monotonic() + _LAST_SWEEP_S
            while self._end_orphans() and time.monotonic() < until:
                time.sleep(0.005)

        self._thread.submit(stop)
        self._thread.shutdown(wait=True)

    # ------------------------------------------------------------------ on the launcher's thread

    def _end_orphans(self) -> int:
        living = forked.living()
        count, server = 0, self.forkserver_pid
        if server is not None:
            count += end_orphans(server, known=living, spared=living)
        if not self._has_other_children:  # then all are forkservers and what multiprocessing starts for itself
            own = {*forkservers.known(), *living, getattr(resource_tracker, "_resource_tracker")._pid}  # noqa: B009, SLF001
            count += end_orphans(os.getpid(), known=own, reap=True)
        if count:
            log.info("orphans ended", extra={"action": "orphans_ended", "orphans": count})
        return count

    def _end_marked(self) -> None:
        if count := end_marked(self._folder):
            log.warning("orphans of an earlier agent ended", extra={"action": "orphans_ended", "orphans": count})
