"""What comes in: requests, batches and retries, recorded before they are answered, then given to the queue or an agent.

Ask of each step what the caller may do meanwhile: go away, or ask the same again a thousand times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from dask_fleet.controller.agents import AgentHandle
from dask_fleet.controller.batch import Batches
from dask_fleet.controller.dispatcher import Dispatcher, Spawn
from dask_fleet.controller.fair_queue import Lane
from dask_fleet.controller.recent import RecentJobs
from dask_fleet.model.errors import Conflict, Draining, FleetError, QueueFull
from dask_fleet.model.jobs import Accepted, JobRecord, NewRun, StoredResult
from dask_fleet.model.states import RunState
from dask_fleet.plugins.ledger import Ledger


class Intake:
    """Takes requests in; what it answers with is on disk.

    Parameters
    ----------
    ledger, dispatcher, recent
        Where they are recorded, who knows the unfinished jobs and the queue, and what has lately ended.
    max_queued
        Jobs that may be queued.
    result
        Returns the result of a job that may still be served, if there is one.
    spawn
        Runs a coroutine as a named task that is awaited at shutdown.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        dispatcher: Dispatcher,
        recent: RecentJobs,
        max_queued: int,
        result: Callable[[JobRecord], Awaitable[StoredResult | None]],
        spawn: Spawn,
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._recent = recent
        self._max_queued = max_queued
        self._result = result
        self._spawn = spawn
        self._accepting: dict[str, asyncio.Future[Accepted]] = {}
        self._batches = Batches(
            ledger=ledger,
            dispatcher=dispatcher,
            max_queued=max_queued,
            enter=lambda new, accepted: self._enter(new, accepted, None),
            without_room=self._without_room,
            spawn=spawn,
        )

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

    async def settled(self, timeout_s: float) -> None:
        """Wait until the requests that are being recorded now are, at most `timeout_s`."""
        if self._accepting:
            await asyncio.wait(list(self._accepting.values()), timeout=timeout_s)

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
            accepted = await self._ledger.accept(new, claim_for=handle.agent_id if handle else None)
        except asyncio.CancelledError:
            # The caller went away; the write did not. Not worth a task for each call: what it opened is looked up instead.
            self._spawn(self._take_over(new, handle), f"take-over-{new.job_id}")
            raise
        except BaseException:
            if handle is not None:
                self._dispatcher.release(handle)
            raise
        return self._enter(new, accepted, handle)

    async def _without_room(self, new: NewRun) -> Accepted:
        """Answer a request while the queue is full: with a result that is there, which adds nothing to the queue."""
        known = None if new.refresh or new.tags or new.idempotency_key else await self._ledger.get(new.job_id)
        if known is not None and known.state is RunState.SUCCEEDED and await self._result(known) is not None:
            return Accepted(job=known, opened=False, claimed=False)
        raise QueueFull(f"{self._max_queued} jobs are queued", retry_after_s=10)

    async def _take_over(self, new: NewRun, handle: AgentHandle | None) -> None:
        """Go on with a request whose caller went away in the middle of the write."""
        # Writes keep their order: this one joins whatever the broken-off one has opened.
        try:
            joined = await self._ledger.accept(msgspec.structs.replace(new, refresh=False))
        except FleetError:  # so was the first refused; nothing was opened
            if handle is not None:
                self._dispatcher.release(handle)
            return
        job = joined.job
        under_way = job.job_id not in self._dispatcher.active and not job.state.is_terminal
        claimed = under_way and handle is not None and job.state is RunState.RUNNING and job.agent == handle.agent_id
        self._enter(new, Accepted(job=job, opened=joined.opened or under_way, claimed=claimed), handle)

    def _enter(self, new: NewRun, accepted: Accepted, handle: AgentHandle | None) -> Accepted:
        """Act on what the ledger has recorded."""
        job = accepted.job
        if not accepted.opened:
            if new.tags:
                self._recent.drop(job.job_id)  # its tags may have grown
        elif job.run > 1:
            self._recent.supersede(job)
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

    async def _reopen(self, job: JobRecord, by: str) -> JobRecord:
        if job.state is RunState.SUCCEEDED:
            raise Conflict(
                "the job succeeded; POST its request with ?refresh=true to compute it again", job_status="succeeded"
            )
        handle = self._dispatcher.reserve(Lane(job.service, job.version), (job.tenant, by))
        try:
            accepted = await self._ledger.reopen(job.seq, by=by, claim_for=handle.agent_id if handle else None)
        except BaseException:
            if handle is not None:
                self._dispatcher.release(handle)
            raise
        if accepted.opened:
            self._recent.supersede(accepted.job)
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
