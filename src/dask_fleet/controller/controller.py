"""The controller's face to the server: accept, find, wait, cancel, retry, and the state of the whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from dask_fleet.controller.agents import AgentHandle, Agents
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.batch import Batches
from dask_fleet.controller.changes import Changes, Subscription
from dask_fleet.controller.clusters.manager import Clusters
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.controller.fair_queue import Lane
from dask_fleet.controller.log_retention import LogSweeper
from dask_fleet.controller.logs import JobLogs
from dask_fleet.controller.outcomes import Outcomes
from dask_fleet.controller.overview import Overview
from dask_fleet.controller.recent import RecentJob, RecentJobs
from dask_fleet.controller.retention import sweep_forever
from dask_fleet.controller.sessions import Sessions
from dask_fleet.model.errors import Conflict, Draining, FleetError, NotFound, QueueFull
from dask_fleet.model.ids import JOB_ID_PATTERN
from dask_fleet.model.jobs import Accepted, JobRecord, NewRun, StoredResult
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
        clock: Clock | None = None,
    ) -> None:
        self.ledger = ledger
        self.results = results
        self.manifest = manifest
        self.clock: Clock = clock or SystemClock()
        self.recent = RecentJobs()
        self.agents = Agents(self.clock)
        self._max_queued = max_queued
        self._row_retention_s = row_retention_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: dict[str, asyncio.Future[Accepted]] = {}
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
        self._batches = Batches(
            ledger=ledger,
            dispatcher=self._dispatcher,
            max_queued=max_queued,
            enter=lambda new, accepted: self._accepted(new, accepted, None),
            without_room=self._without_room,
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
        if self._accepting:
            await asyncio.wait(list(self._accepting.values()), timeout=timeout_s)  # they may begin yet
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

    # ------------------------------------------------------------------ requests

    async def submit(self, new: NewRun) -> Accepted:
        """Record a request, or join the job it names; durable when this returns.

        A thousand equal requests at once are one write: the first makes it, the others wait for its answer.

        Raises
        ------
        Draining, QueueFull, LedgerUnavailable
            Nothing was accepted.
        IdempotencyMismatch
            The key stands for another request.
        """
        if self._dispatcher.paused:
            raise Draining("the server is shutting down; ask again in a moment", retry_after_s=5)
        if new.idempotency_key is not None:
            return await self._single(f"{new.user}\0{new.idempotency_key}\0{new.job_id}\0{new.request_digest.hex()}", new)
        job = self._dispatcher.active.get(new.job_id)
        if job is not None and set(new.tags) <= set(job.tags):
            return Accepted(job=job, opened=False, claimed=False)
        # Requests that differ in more than their parameters are not told each other's answer.
        key = new.job_id if not (new.tags or new.refresh) else f"{new.job_id}\0{new.refresh}\0{','.join(new.tags)}"
        return await self._single(key, new)

    async def submit_many(self, news: Sequence[NewRun]) -> list[Accepted | FleetError]:
        """Do `submit` for each of `news`, in transactions of many; all that was accepted is durable when this returns.

        The answers are in the order of the requests; what is wrong with one, or that it found no room or no medium, is its
        entry. Nothing is claimed on the way: they are queued, and go to agents from there.

        Raises
        ------
        Draining
            Nothing was accepted.
        """
        if self._dispatcher.paused:
            raise Draining("the server is shutting down; ask again in a moment", retry_after_s=5)
        return await self._batches.submit(news)

    async def _single(self, key: str, new: NewRun) -> Accepted:
        others = self._accepting.get(key)
        if others is not None:
            return await asyncio.shield(others)
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._accepting[key] = answer
        try:
            accepted = await self._accept(new)
        except BaseException as exc:
            told = exc if isinstance(exc, Exception) else Draining("the request was broken off; ask again", retry_after_s=1)
            answer.set_exception(told)
            answer.exception()  # retrieved, should nobody else wait
            raise
        else:
            answer.set_result(accepted)
            return accepted
        finally:
            del self._accepting[key]

    async def _accept(self, new: NewRun) -> Accepted:
        lane = Lane(new.service, new.version)
        too_late = self._dispatcher.is_too_late(new.deadline_us)
        handle = None if too_late else self._dispatcher.reserve(lane, (new.tenant, new.user))
        if handle is None and len(self._dispatcher.queue) >= self._max_queued:
            return await self._without_room(new)
        try:
            accepted = await self.ledger.accept(new, claim_for=handle.agent_id if handle else None)
        except asyncio.CancelledError:
            # The caller went away; the write did not. Not worth a task for each call: what it opened is looked up instead.
            self._spawn(self._take_over(new, handle), f"take-over-{new.job_id}")
            raise
        except BaseException:
            if handle is not None:
                self._dispatcher.release(handle)
            raise
        return self._accepted(new, accepted, handle)

    async def _without_room(self, new: NewRun) -> Accepted:
        """Answer a request while the queue is full: with a result that is there, which adds nothing to the queue."""
        known = None if new.refresh or new.tags or new.idempotency_key else await self.ledger.get(new.job_id)
        if known is not None and known.state is RunState.SUCCEEDED and await self.result(known) is not None:
            return Accepted(job=known, opened=False, claimed=False)
        raise QueueFull(f"{self._max_queued} jobs are queued", retry_after_s=10)

    async def _take_over(self, new: NewRun, handle: AgentHandle | None) -> None:
        """Go on with a request whose caller went away in the middle of the write."""
        # Writes keep their order: this one joins whatever the broken-off one has opened.
        try:
            joined = await self.ledger.accept(msgspec.structs.replace(new, refresh=False))
        except FleetError:  # so was the first refused; nothing was opened
            if handle is not None:
                self._dispatcher.release(handle)
            return
        job = joined.job
        under_way = job.job_id not in self._dispatcher.active and not job.state.is_terminal
        claimed = under_way and handle is not None and job.state is RunState.RUNNING and job.agent == handle.agent_id
        self._accepted(new, Accepted(job=job, opened=joined.opened or under_way, claimed=claimed), handle)

    def _accepted(self, new: NewRun, accepted: Accepted, handle: AgentHandle | None) -> Accepted:
        """Act on what the ledger has recorded."""
        job = accepted.job
        if not accepted.opened:
            if new.tags:
                self.recent.drop(job.job_id)  # its tags may have grown
        elif job.run > 1:
            self.recent.supersede(job)
        if accepted.claimed:
            assert handle is not None
            self._dispatcher.start(handle, job)
            return accepted
        if handle is not None:
            self._dispatcher.release(handle)
        if accepted.opened:
            self._dispatcher.enqueue(job)
            self._dispatcher.pump()
        elif job.job_id in self._dispatcher.active:
            self._dispatcher.track(job)  # its tags may have grown
        return accepted

    async def retry(self, job: JobRecord, by: str) -> JobRecord:
        """Open the next run of a failed, cancelled or expired job; an unfinished one is joined.

        Raises
        ------
        Conflict
            If the job succeeded (ask for a refresh instead).
        """
        if self._dispatcher.paused:
            raise Draining("the server is shutting down; ask again in a moment", retry_after_s=5)
        task = asyncio.create_task(self._reopen(job, by), name=f"retry-{job.job_id}")
        return await asyncio.shield(task)

    async def _reopen(self, job: JobRecord, by: str) -> JobRecord:
        if job.state is RunState.SUCCEEDED:
            raise Conflict(
                "the job succeeded; POST its request with ?refresh=true to compute it again", job_status="succeeded"
            )
        handle = self._dispatcher.reserve(Lane(job.service, job.version), (job.tenant, by))
        try:
            accepted = await self.ledger.reopen(job.seq, by=by, claim_for=handle.agent_id if handle else None)
        except BaseException:
            if handle is not None:
                self._dispatcher.release(handle)
            raise
        if accepted.opened:
            self.recent.supersede(accepted.job)
        if accepted.claimed:
            assert handle is not None
            self._dispatcher.start(handle, accepted.job)
            return accepted.job
        if handle is not None:
            self._dispatcher.release(handle)
        if accepted.opened:
            self._dispatcher.enqueue(accepted.job)
            self._dispatcher.pump()
        return accepted.job

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
