"""Looks at each worker process, twice a second or more often: is it stopped, is it close to its memory limit.

That an attempt is silent says nothing: a call into C that keeps the interpreter looks the same as a process that hangs, and
only its time-out ends it. So nothing here asks the process itself; the kernel knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from dask_fleet.agent import deaths
from dask_fleet.agent.vitals import LOOK_AGAIN_S, Vitals, next_look_s
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.config.memory import memory_cgroups, oom_kills

log = logging.getLogger(__name__)

_COUNT_EVERY = 8
"""Looks between two readings of what the kernel has killed (what it did long ago explains nothing that happens now), and
between two looks after the forkserver in waiting.
"""


class Watch:
    """One timer for all processes. An idle agent pays a few microseconds a process, twice a second.

    Parameters
    ----------
    processes
        Returns those to look at.
    forkserver_pid
        Returns the forkserver: one that is stopped forks nothing and tells of no death, so it is killed, with its children.
    tend
        Called now and then, to see to what nobody waits for.
    limit_bytes
        Memory each may have; 0 for no limit.
    """

    def __init__(
        self,
        processes: Callable[[], Iterable[WorkerProcess]],
        forkserver_pid: Callable[[], int | None],
        *,
        tend: Callable[[], None] = lambda: None,
        limit_bytes: int,
    ) -> None:
        self._tend = tend
        self._processes = processes
        self._forkserver_pid = forkserver_pid
        self._forkserver: Vitals | None = None
        self._limit_bytes = limit_bytes
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._weighing: asyncio.Task[None] | None = None
        self._looks = 0
        self._cgroups: list[Path] = memory_cgroups()
        self._oom_kills = oom_kills(self._cgroups)

    @property
    def limit_bytes(self) -> int:
        """Memory each process may have; 0 for no limit."""
        return self._limit_bytes

    def begin(self) -> None:
        """Look from now on."""
        self._timer = self._loop.call_soon(self._look)

    def close(self) -> None:
        """Look no more. Twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._weighing is not None:
            self._weighing.cancel()
        if self._forkserver is not None:
            self._forkserver.close()

    def of_exit(self, worker: WorkerProcess, code: int | None) -> deaths.Death:
        """Return what the death of a process that nobody here has killed is called."""
        oom_killed = False
        if code is not None and code < 0:
            oom_killed = self._count_oom_kills()
        vitals = worker.vitals
        return deaths.of_exit(
            code,
            last_bytes=vitals.last.rss_bytes if vitals.last else 0,
            peak_bytes=vitals.peak_bytes,
            limit_bytes=self._limit_of(worker),
            oom_killed=oom_killed,
            guarded=worker.alone,
        )

    def _limit_of(self, worker: WorkerProcess) -> int:
        return self._limit_bytes if worker.limit_bytes is None else worker.limit_bytes

    def _count_oom_kills(self) -> bool:
        before, self._oom_kills = self._oom_kills, oom_kills(self._cgroups)
        return self._oom_kills > before

    def _look(self) -> None:
        now = self._loop.time()
        self._looks += 1
        if self._looks % _COUNT_EVERY == 0:
            self._tend()
            if self._cgroups:
                self._count_oom_kills()
        self._look_at_forkserver(now)
        wait_s = min((self._look_at(worker, now) for worker in self._processes()), default=0.5)
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look_at(self, worker: WorkerProcess, now: float) -> float:
        """Look at one process, kill it if need be, and return when to look again."""
        vitals = worker.vitals
        if (seen := vitals.look(now)) is None:
            return next_look_s(0, 0.0, 0)
        sample, before, since_s = seen
        limit_bytes, busy = self._limit_of(worker), bool(worker.attempts or worker.leases)
        used = sample.rss_bytes
        growth = (used - before.rss_bytes) / since_s if before is not None and since_s > 0 else 0.0
        if limit_bytes:
            others_before = worker.descendants.rss_bytes
            if others := worker.descendants.look(now, busy=busy):
                used = worker.descendants.estimate(sample.rss_bytes)
                growth += (others - others_before) / since_s if since_s > 0 else 0.0
        if len(worker.descendants):
            busy = True
        wait_s = next_look_s(used, growth, limit_bytes, busy=busy)
        if limit_bytes and sample.rss_bytes >= worker.kill_at * limit_bytes:
            peak = vitals.ask_peak()
            self._kill(worker, deaths.for_memory(peak, limit_bytes), rss_bytes=sample.rss_bytes)
        elif limit_bytes and used >= worker.kill_at * limit_bytes:
            self._begin_to_weigh(worker, limit_bytes, now)
        elif sample.state == "Z":
            worker.ask_for_end()
        elif vitals.stopped_since is not None:
            if now - vitals.stopped_since >= LOOK_AGAIN_S * 0.9:
                self._kill(worker, deaths.WHILE_STOPPED)
            else:
                wait_s = min(wait_s, LOOK_AGAIN_S)
        return wait_s

    def _begin_to_weigh(self, worker: WorkerProcess, limit_bytes: int, now: float) -> None:
        """Let the family be weighed that looks too heavy, beside the event loop."""
        if self._weighing is None and worker.death is None and worker.descendants.may_weigh(now):
            self._weighing = self._loop.create_task(self._weigh(worker, limit_bytes), name="weigh-family")

    async def _weigh(self, worker: WorkerProcess, limit_bytes: int) -> None:
        try:
            pss, rss, took_s = await asyncio.to_thread(worker.descendants.weigh)
        finally:
            self._weighing = None
        worker.descendants.weighed(pss, rss, took_s, self._loop.time())
        if pss >= worker.kill_at * limit_bytes and not worker.ended:
            worker.vitals.peak_bytes = max(worker.vitals.ask_peak(), pss)
            death = deaths.for_memory(
                worker.vitals.peak_bytes, limit_bytes, descendants=len(worker.descendants)
            )
            self._kill(worker, death, pss_bytes=pss)

    def _look_at_forkserver(self, now: float) -> None:
        pid = self._forkserver_pid()
        if self._forkserver is None or self._forkserver.pid != pid:
            if self._forkserver is not None:
                self._forkserver.close()
            self._forkserver = Vitals(pid) if pid is not None else None
        vitals = self._forkserver
        if vitals is None or vitals.look(now) is None or vitals.stopped_since is None:
            return
        if now - vitals.stopped_since >= LOOK_AGAIN_S:
            log.warning("the forkserver was stopped and is killed", extra={"action": "forkserver_killed", "pid": pid})
            with contextlib.suppress(ProcessLookupError):
                os.kill(vitals.pid, signal.SIGKILL)  # a child of this process that it has not taken away yet: no other's pid

    def _kill(self, worker: WorkerProcess, death: deaths.Death, **more: int) -> None:
        if worker.death is None:
            log.warning(
                "worker process %s %s", worker.name, death.how,
                extra={"action": "worker_killed", "worker": worker.name, "cause": str(death.cause), **more},
            )  # fmt: skip
        worker.kill(death)
