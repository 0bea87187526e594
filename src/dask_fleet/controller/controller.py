"""The controller's face to the server: find, wait, cancel, and the state of the whole; requests come in by its `Intake`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dask_fleet.controller.agents import Agents
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.changes import Changes, Subscription
from dask_fleet.controller.clusters.manager import Clusters
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.controller.intake import Intake
from dask_fleet.controller.log_retention import LogSweeper
from dask_fleet.controller.logs import JobLogs
from dask_fleet.controller.outcomes import Outcomes
from dask_fleet.controller.overview import Overview
from dask_fleet.controller.recent import RecentJob, RecentJobs
from dask_fleet.controller.retention import sweep_forever
from dask_fleet.controller.sessions import Sessions
from dask_fleet.model.errors import Conflict, NotFound
from dask_fleet.model.ids import JOB_ID_PATTERN
from dask_fleet.model.jobs import JobRecord, StoredResult
from dask_fleet.model.logs import DEFAULT_LOGS_MAX_BYTES, LOG_FOLDER
from dask_fleet.model.manifest import Manifest
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock, SystemClock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.plugins.result_store import ResultStore
from dask_fleet.protocol.frames import Cancel, Progress, Shutdown

log = logging.getLogger(__name__)

_RECOVERY_PAGE = 1000


class Controller:
    """Joins ledger, queue and agents on one event loop."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        results: ResultStore,
        manifest: Manifest,
        spool: Path,
        max_queued: int = 100_000,
        row_retention_s: float = 90 * 86_400.0,
        logs_max_bytes: int = DEFAULT_LOGS_MAX_BYTES,
        max_clusters_per_user: int = 20,
        max_cluster_workers: int | None = None,
        job_share: float = 0.0,
        spare_clusters: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.ledger = ledger
        self.results = results
        self.manifest = manifest
        self.clock: Clock = clock or SystemClock()
        self.recent = RecentJobs()
        self.agents = Agents(self.clock)
        self._row_retention_s = row_retention_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = Changes()
        self._alarms = Alarms(self.clock)
        self._dispatcher = Dispatcher(
            ledger=ledger,
            agents=self.agents,
            alarms=self._alarms,
            changes=self._changes,
            clock=self.clock,
            spawn=self._spawn,
        )
        self._outcomes = Outcomes(
            ledger=ledger,
            results=results,
            spool=spool,
            dispatcher=self._dispatcher,
            changes=self._changes,
            recent=self.recent,
            clock=self.clock,
        )
        self.logs = JobLogs(spool.with_name(LOG_FOLDER), ledger=ledger, changes=self._changes, spawn=self._spawn)
        self.intake = Intake(
            ledger=ledger,
            dispatcher=self._dispatcher,
            recent=self.recent,
            max_queued=max_queued,
            result=self.result,
            spawn=self._spawn,
        )
        self._log_sweeper = LogSweeper(
            self.logs, ledger, max_bytes=logs_max_bytes, is_active=lambda seq: seq in self._dispatcher.by_seq
        )
        self.versions = {service.name: service.version for service in manifest.services}
        self._overview = Overview(
            ledger=ledger, agents=self.agents, dispatcher=self._dispatcher, clock=self.clock, versions=self.versions
        )
        self.clusters = Clusters(
            ledger=ledger,
            agents=self.agents,
            dispatcher=self._dispatcher,
            alarms=self._alarms,
            clock=self.clock,
            spawn=self._spawn,
            max_per_user=max_clusters_per_user,
            max_workers=max_cluster_workers,
            job_share=job_share,
            spares=spare_clusters,
        )
        self.sessions = Sessions(
            agents=self.agents,
            dispatcher=self._dispatcher,
            outcomes=self._outcomes,
            changes=self._changes,
            logs=self.logs,
            clock=self.clock,
            spawn=self._spawn,
            ledger=ledger,
            ledger_id=lambda: ledger.ledger_id,
            targets=[service.target for service in manifest.services],
            versions=self.versions,
            clusters=self.clusters,
        )

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up every unfinished job of the ledger (which must be open)."""
        after, queued, running = 0, 0, 0
        while True:
            page = await self.ledger.unfinished(after_seq=after, limit=_RECOVERY_PAGE)
            for job in page:
                after = job.seq
                if job.state is RunState.QUEUED:
                    self._dispatcher.enqueue(job)
                    queued += 1
                else:
                    self.sessions.adopt_from_ledger(job)
                    running += 1
            if len(page) < _RECOVERY_PAGE:
                break
        await self.clusters.start()
        await self.sessions.take_up()
        self._spawn(self.sessions.leases.keep_forever(), "leases")
        if queued or running:
            log.info("taken up", extra={"action": "recovered", "queued": queued, "running": running})
        self._spawn(
            sweep_forever(
                self.ledger,
                self.results,
                self._log_sweeper,
                clock=self.clock,
                row_retention_s=self._row_retention_s,
                in_use=self._outcomes.bytes_in_use,
            ),
            "retention",
        )

    async def drain(self, timeout_s: float) -> None:
        """Take no new work, start nothing queued, and wait until running attempts have ended, at most `timeout_s`."""
        self._dispatcher.paused = True
        log.info("draining", extra={"action": "draining", "running": self.running})
        deadline = self.clock.monotonic() + timeout_s
        await self.intake.settled(timeout_s)  # they may begin yet
        for job in list(self._dispatcher.by_seq.values()):
            with self._changes.subscribe(job.seq) as changed:
                # As it is now, not as it was: it may have ended, or been queued again, while another one was waited for.
                while (now := self._dispatcher.by_seq.get(job.seq)) is not None and now.state is RunState.RUNNING:
                    left_s = deadline - self.clock.monotonic()
                    if left_s <= 0 or not await changed.next(left_s):
                        return

    def shut_agents_down(self, drain_s: float) -> None:
        """Tell connected agents to end."""
        for handle in self.agents:
            handle.send(Shutdown(drain_s))

    def dismiss_waiters(self) -> None:
        """Have held answers and event streams end now: the server is about to."""
        self._changes.close()

    async def close(self) -> None:
        """Stop all tasks; what was not recorded is taken up again at the next start."""
        self._dispatcher.paused = True
        self._alarms.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.logs.close)

    # ------------------------------------------------------------------ jobs

    async def cancel(self, job: JobRecord, by: str) -> JobRecord:
        """Cancel the current run: a queued one at once, a running one cooperatively, then by force; an ended one stays."""
        changed = await self.ledger.request_cancel(job.seq, job.run, by=by)
        if changed is None:
            return await self.newest(job)
        if changed.state.is_terminal:
            self._dispatcher.untrack(changed)
        else:
            self._dispatcher.track(changed)
            handle = self.agents.get(changed.agent or "")
            if handle is not None:
                handle.send(Cancel(changed.seq, changed.run, changed.attempt))
        self._changes.publish(changed)
        return changed

    # ------------------------------------------------------------------ looking

    async def find(self, job_id: str, tenant: str) -> JobRecord:
        """Return a job of that tenant.

        Raises
        ------
        NotFound
            If there is none: the same for one that never was, and for another tenant's.
        """
        if JOB_ID_PATTERN.match(job_id):
            job = self._dispatcher.active.get(job_id)
            if job is None:
                entry = self.recent.get(job_id, self.clock.now_us())
                job = entry.job if entry is not None else await self.ledger.get(job_id)
            if job is not None and job.tenant == tenant:
                return job
        raise NotFound("no such job")

    async def newest(self, job: JobRecord) -> JobRecord:
        """Return the newest record of a job."""
        return await self.find(job.job_id, job.tenant)

    async def wait(self, job: JobRecord, timeout_s: float) -> JobRecord:
        """Return the job once its current run has ended, or as it is after `timeout_s`."""
        if job.state.is_terminal:
            return job
        now = self._dispatcher.active.get(job.job_id)
        if now is None or now.run != job.run:
            return await self.newest(job)
        if timeout_s > 0:
            ended = await self._changes.outcome(job.seq, timeout_s)
            if ended is not None:
                return ended
        return self._dispatcher.active.get(job.job_id) or await self.newest(job)

    def cached(self, job_id: str) -> RecentJob | None:
        """Return a succeeded job with its result if it is at hand and no later run is under way."""
        if job_id in self._dispatcher.active:
            return None
        return self.recent.get(job_id, self.clock.now_us())

    async def result(self, job: JobRecord) -> StoredResult | None:
        """Return the latest result of a job that may still be served, or ``None``."""
        now_us = self.clock.now_us()
        if job.result_run is None or (job.result_expires_us or 0) <= now_us:
            return None
        entry = self.recent.get(job.job_id, now_us)
        if entry is not None and entry.result.run == job.result_run:
            return entry.result
        result = await self.ledger.get_result(job.seq, job.result_run)
        if result is not None and job.state is RunState.SUCCEEDED and job.job_id not in self._dispatcher.active:
            self.recent.put(job, result)
        return result

    def progress_of(self, seq: int) -> Progress | None:
        """Return how far the running attempt of a job is, if it said so."""
        job = self._dispatcher.by_seq.get(seq)
        if job is None or job.agent is None:
            return None
        handle = self.agents.get(job.agent)
        held = handle.held.get((seq, job.attempt)) if handle else None
        return held.progress if held else None

    def result_limit(self, seq: int, attempt: int) -> int:
        """Return how large the result of an attempt may be, in bytes.

        Raises
        ------
        Conflict
            If that is not an attempt under way: what it brings would be refused by the fence.
        """
        job = self._dispatcher.by_seq.get(seq)
        if job is None or job.attempt != attempt or job.state is not RunState.RUNNING:
            raise Conflict("that attempt is not under way any more: its outcome would be refused")
        return job.policy.max_result_bytes

    def waiting_for(self, job: JobRecord) -> str | None:
        """Say what a queued run waits for."""
        return self._dispatcher.waiting_for(job)

    def subscribe(self, seq: int, *, logs: bool = False) -> AbstractContextManager[Subscription]:
        """Listen to the changes of a job; to the growth of its logs as well, if asked."""
        return self._changes.subscribe(seq, logs=logs)

    # ------------------------------------------------------------------ the whole

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down."""
        return self._dispatcher.paused

    @property
    def closing(self) -> bool:
        """Whether nobody may wait for anything any longer: see `dismiss_waiters`."""
        return self._changes.closed

    @property
    def running(self) -> int:
        """Runs with an attempt under way."""
        return self._overview.running

    def not_ready_because(self, *, needs_agent: bool) -> str | None:
        """Say why requests are not accepted or, if asked, why no agent can run every service; ``None`` if all is well."""
        return self._overview.not_ready_because(needs_agent=needs_agent)

    def status(self, *, tenant: str | None = None) -> dict[str, Any]:
        """Return what ``GET /v1/status`` shows; of users only those of `tenant`, unless it is ``None``."""
        return self._overview.status(tenant=tenant, stale_outcomes=self._outcomes.stale)

    # ------------------------------------------------------------------ tasks

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=exc, extra={"action": "task_failed"})
