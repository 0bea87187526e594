"""Gives queued runs to agents with free slots: reserve, claim in the ledger, then send. Holds every unfinished job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from dask_fleet.controller.agents import AgentHandle, Agents, HeldAttempt
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.changes import Changes
from dask_fleet.controller.fair_queue import FairQueue, Lane, QueuedRun
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.protocol.frames import Cancel, Start

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], None]
"""Runs a coroutine as a named task that is awaited at shutdown."""

_LEDGER_RETRY_US = 500_000


class Dispatcher:
    """The queue and the slots.

    Every unfinished job of the ledger is in `active`; memory is a hint, the ledger's guards decide.
    """

    def __init__(
        self, *, ledger: Ledger, agents: Agents, alarms: Alarms, changes: Changes, clock: Clock, spawn: Spawn
    ) -> None:
        self._ledger = ledger
        self._agents = agents
        self._alarms = alarms
        self._changes = changes
        self._clock = clock
        self._spawn = spawn
        self.queue = FairQueue()
        self.active: dict[str, JobRecord] = {}
        self.by_seq: dict[int, JobRecord] = {}
        self.paused = False
        """While draining: nothing new is started."""

    # ------------------------------------------------------------------ the books

    def track(self, job: JobRecord) -> None:
        """Take the newest record of an unfinished job into the books."""
        self.active[job.job_id] = job
        self.by_seq[job.seq] = job

    def untrack(self, job: JobRecord) -> None:
        """The job's run has ended."""
        self.active.pop(job.job_id, None)
        self.by_seq.pop(job.seq, None)
        self.queue.discard(job.seq)

    # ------------------------------------------------------------------ slots

    def reserve(self, lane: Lane) -> AgentHandle | None:
        """Take a slot for a run that is being accepted, unless queued runs of its lane come first."""
        if self.paused or (len(self.queue) and lane in self.queue.lanes()):
            return None
        handle = self._agents.choose(lane)
        if handle is not None:
            handle.reserved += 1
        return handle

    def release(self, handle: AgentHandle) -> None:
        """Give a reserved slot back."""
        handle.reserved -= 1
        self.pump()

    def start(self, handle: AgentHandle, job: JobRecord) -> None:
        """Turn a reserved slot into a held attempt (it is durable already) and tell the agent to run it."""
        handle.reserved -= 1
        endpoint = (job.service, job.endpoint)
        handle.hold(
            HeldAttempt(
                seq=job.seq,
                run=job.run,
                attempt=job.attempt,
                since=self._clock.monotonic(),
                endpoint=endpoint,
                short=handle.window.is_short(endpoint),
                alongside=len(handle.held) + 1,
            )
        )
        self.track(job)
        handle.send(start_frame(job))
        if job.cancel_requested_by is not None:
            handle.send(Cancel(job.seq, job.run, job.attempt))
        self._changes.publish(job)

    # ------------------------------------------------------------------ queue

    def enqueue(self, job: JobRecord) -> None:
        """Put a queued run in line: now, or when its back-off ends; watch its deadline."""
        self.track(job)
        # By number: an alarm outlives a run that ends before, and must not keep its parameters till then.
        if job.deadline_us is not None:
            self._alarms.at(job.deadline_us, partial(self._deadline, job.seq, job.run))
        if job.not_before_us > self._clock.now_us():
            self._alarms.at(job.not_before_us, partial(self._due, job.seq, job.run))
        else:
            self._push(job)

    def is_too_late(self, deadline_us: int | None) -> bool:
        """Whether a run with that deadline must not begin any more."""
        return deadline_us is not None and deadline_us <= self._clock.now_us()

    def pump(self) -> None:
        """Give free slots to queued runs until one of both is used up."""
        while not self.paused and len(self.queue):
            entry = self.queue.pop(self._agents.free_for)
            if entry is None:
                return
            job = self.by_seq.get(entry.seq)
            if job is not None and self.is_too_late(job.deadline_us):
                self._spawn(self._expire(job), f"expire-{entry.seq}")
                continue
            handle = self._agents.choose(entry.lane)
            assert handle is not None, "pop asked whether there is a slot"
            handle.reserved += 1
            self._spawn(self._claim(entry, handle), f"claim-{entry.seq}")

    def _push(self, job: JobRecord) -> None:
        self.queue.push(
            QueuedRun(
                seq=job.seq,
                run=job.run,
                lane=(job.service, job.version),
                user=job.opened_by or job.user,
                priority=job.priority,
            )
        )

    async def _claim(self, entry: QueuedRun, handle: AgentHandle) -> None:
        try:
            job = await self._ledger.claim(entry.seq, entry.run, agent=handle.agent_id)
        except LedgerUnavailable:
            log.warning("claim postponed", extra={"action": "claim_postponed", "seq": entry.seq})
            handle.reserved -= 1
            self._alarms.at(self._clock.now_us() + _LEDGER_RETRY_US, lambda: self._due(entry.seq, entry.run))
            return
        except BaseException:
            self.release(handle)
            raise
        if job is None:
            # Cancelled or expired between pop and claim; or the clock went backwards over its back-off.
            waiting = self.by_seq.get(entry.seq)
            if waiting is not None and waiting.run == entry.run and waiting.state is RunState.QUEUED:
                self._alarms.at(self._clock.now_us() + _LEDGER_RETRY_US, lambda: self._due(entry.seq, entry.run))
            self.release(handle)
            return
        self.start(handle, job)

    def _due(self, seq: int, run: int) -> None:
        job = self.by_seq.get(seq)
        if job is not None and job.run == run and job.state is RunState.QUEUED and seq not in self.queue:
            self._push(job)
            self.pump()

    def _deadline(self, seq: int, run: int) -> None:
        job = self.by_seq.get(seq)
        if job is not None and job.run == run and job.state is RunState.QUEUED:
            self._spawn(self._expire(job), f"expire-{seq}")

    async def _expire(self, job: JobRecord) -> None:
        try:
            ended = await self._ledger.expire(job.seq, job.run)
        except LedgerUnavailable:
            self._alarms.at(self._clock.now_us() + _LEDGER_RETRY_US, lambda: self._deadline(job.seq, job.run))
            return
        if ended is not None:
            self.untrack(ended)
            self._changes.publish(ended)
        else:  # it has begun or ended; or the clock went backwards over its deadline, and it must not fall out of the line
            self._alarms.at(self._clock.now_us() + _LEDGER_RETRY_US, partial(self._due, job.seq, job.run))

    # ------------------------------------------------------------------ why a run waits

    def waiting_for(self, job: JobRecord) -> str | None:
        """Say in a sentence what a queued run waits for; ``None`` if it does not wait."""
        if job.state is not RunState.QUEUED:
            return None
        if self.paused:
            return "the server to be started again: it is shutting down"
        wait_us = job.not_before_us - self._clock.now_us()
        if wait_us > 0:
            return f"its next attempt, in {wait_us / 1e6:.1f} s (back-off)"
        lane = (job.service, job.version)
        connected = [handle for handle in self._agents if handle.connected]
        if not connected:
            return "an agent: none is connected"
        able = [handle for handle in connected if handle.can_run(lane)]
        if not able:
            problems = "; ".join(text for handle in connected for text in handle.problems.values())
            loaded = sorted({handle.versions[job.service] for handle in connected if job.service in handle.versions})
            if loaded:
                return (
                    f"an agent with {job.service} {job.version}; the agents have {', '.join(loaded)}"
                    " (restart the server with the version you want, or cancel the job and ask again)"
                )
            return f"an agent that has loaded {job.service!r}" + (f": {problems}" if problems else " (workers are starting)")
        ahead = max(0, len(self.queue) - 1)
        slots = sum(handle.slots for handle in able)
        return f"a slot: all {slots} are busy" + (f", {ahead} other jobs wait too" if ahead else "")


def start_frame(job: JobRecord) -> Start:
    """Return the frame that makes an agent run the current attempt of `job`."""
    return Start(
        seq=job.seq,
        run=job.run,
        attempt=job.attempt,
        job_id=job.job_id,
        service=job.service,
        endpoint=job.endpoint,
        version=job.version,
        params=job.params,
        timeout_s=job.policy.timeout_s,
        max_result_bytes=job.policy.max_result_bytes,
    )
