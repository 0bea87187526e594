"""Gives queued runs to agents with free slots: reserve, claim in the ledger, then send. Holds every unfinished job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, Protocol

from dask_fleet.controller.agents import AgentHandle, Agents, HeldAttempt
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.breaker import PAUSE_S, Breaker
from dask_fleet.controller.changes import Changes
from dask_fleet.controller.fair_queue import FairQueue, Lane, Owner, QueuedRun
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.jobs import LONGEST_BACKOFF_S, JobRecord
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.protocol.frames import Cancel, Start

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], None]
"""Runs a coroutine as a named task that is awaited at shutdown."""

_LEDGER_RETRY_S = 0.5
_UNFORESEEN_RETRY_S = 5.0


def _ignore(_handle: AgentHandle) -> None:
    pass


class SlotTurns(Protocol):
    """Who else takes slots, in turns with the queue."""

    hungry: bool
    """Whether it lacks any; else it is not asked."""

    def before_jobs(self) -> None:
        """Take what comes before queued runs."""

    def after_jobs(self) -> None:
        """Take what queued runs have left."""

    @property
    def has_spares(self) -> bool:
        """Whether it keeps slots that nobody needs yet; else it is not asked for them."""

    def make_way(self, lanes: Collection[Lane]) -> None:
        """Give such slots back that runs of these lanes could use, and those that runs given ahead wait for."""

    def spare_slots(self, agent: str) -> int:
        """Return how many of an agent's slots it would give back so."""


class _NobodyElse:
    hungry = False
    has_spares = False

    def before_jobs(self) -> None:
        pass

    def after_jobs(self) -> None:
        pass

    def make_way(self, lanes: Collection[Lane]) -> None:
        pass

    def spare_slots(self, agent: str) -> int:  # noqa: ARG002
        return 0


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
        self.breaker = Breaker()
        self.others: SlotTurns = _NobodyElse()
        """Clusters, which take their slots from the same agents."""
        self.on_claimed_for_lost: Callable[[AgentHandle], None] = _ignore
        """Called when an attempt was claimed for an agent that was given up while the claim was being written."""

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

    def reserve(self, lane: Lane, owner: Owner) -> AgentHandle | None:
        """Take a slot for a run that is being accepted, unless queued runs of its lane come first or its user is paused."""
        if self.paused or (len(self.queue) and lane in self.queue.lanes()):
            return None
        if self.breaker.pauses and owner in self.breaker.pauses:
            return None
        handle = self._agents.choose(lane)
        if handle is not None:
            handle.reserved += 1
            if self.others.has_spares and handle.free < 0:
                self.others.make_way(())
        return handle

    def release(self, handle: AgentHandle, *, alone: bool = False) -> None:
        """Give a reserved slot back."""
        handle.unreserve(alone=alone)
        self.pump()

    def start(self, handle: AgentHandle, job: JobRecord) -> None:
        """Turn a reserved slot into a held attempt (it is durable already) and tell the agent to run it."""
        handle.reserved -= 1
        if job.suspect:
            handle.reserved_alone -= 1
        endpoint = (job.service, job.endpoint)
        handle.hold(
            HeldAttempt(
                seq=job.seq,
                run=job.run,
                attempt=job.attempt,
                since=self._clock.monotonic(),
                endpoint=endpoint,
                short=handle.window.is_short(endpoint),
                alone=job.suspect,
                alongside=len(handle.held) + 1,
            )
        )
        self.track(job)
        if handle.lost:  # while the claim was written
            self.on_claimed_for_lost(handle)
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
        wait_s = self._backoff_s(job)
        if wait_s > 0:
            self._alarms.after(wait_s, partial(self._due, job.seq, job.run))
        else:
            self._push(job)

    def _backoff_s(self, job: JobRecord) -> float:
        """Return how long a queued run has still to wait: never longer than any back-off, whatever the wall clock did."""
        return min((job.not_before_us - self._clock.now_us()) / 1e6, LONGEST_BACKOFF_S)

    def is_too_late(self, deadline_us: int | None) -> bool:
        """Whether a run with that deadline must not begin any more."""
        return deadline_us is not None and deadline_us <= self._clock.now_us()

    def pump(self) -> None:
        """Give free slots to queued runs, and to clusters in their turns, until one of both is used up."""
        others = self.others
        if not others.hungry or self.paused:
            self._pump_queue()
        else:
            others.before_jobs()
            self._pump_queue()
            others.after_jobs()
        if others.has_spares and not self.paused:
            others.make_way(self.queue.lanes() if len(self.queue) else ())

    def head_since(self) -> float | None:
        """Return since when (monotonic clock) the queued run waits that gets the next slot, or ``None`` if none waits."""
        if not len(self.queue):
            return None
        entry = self.queue.peek(lambda lane: any(handle.connected and handle.can_run(lane) for handle in self._agents))
        job = None if entry is None else self.by_seq.get(entry.seq)
        if job is None:
            return None
        waits_s = (self._clock.now_us() - max(job.opened_us, job.not_before_us)) / 1e6
        return self._clock.monotonic() - max(waits_s, 0.0)

    def _pump_queue(self) -> None:
        chosen: dict[Lane, AgentHandle | None] = {}

        def has_slot(lane: Lane) -> bool:
            # Remembered, not asked again: what is given ahead depends on the time, and between two looks it goes by.
            handle = chosen[lane] = self._agents.choose(lane)
            return handle is not None

        while not self.paused and len(self.queue):
            entry = self.queue.pop(has_slot)
            if entry is None:
                return
            job = self.by_seq.get(entry.seq)
            if job is not None and self.is_too_late(job.deadline_us):
                self._spawn(self._expire(job), f"expire-{entry.seq}")
                continue
            handle = chosen[entry.lane]
            assert handle is not None, "pop takes from lanes with a slot only"
            handle.reserve(alone=entry.lane.alone)
            self._spawn(self._claim(entry, handle), f"claim-{entry.seq}")

    def _push(self, job: JobRecord) -> None:
        self.queue.push(
            QueuedRun(
                seq=job.seq,
                run=job.run,
                lane=Lane(job.service, job.version, job.suspect),
                user=job.opened_by or job.user,
                priority=job.priority,
                tenant=job.tenant,
            ),
            first=job.faults + job.losses > 0,
        )

    async def _claim(self, entry: QueuedRun, handle: AgentHandle) -> None:
        alone = entry.lane.alone
        try:
            job = await self._ledger.claim(entry.seq, entry.run, agent=handle.agent_id)
        except LedgerUnavailable:
            log.warning("claim postponed", extra={"action": "claim_postponed", "seq": entry.seq})
            handle.unreserve(alone=alone)
            self._alarms.after(_LEDGER_RETRY_S, partial(self._due, entry.seq, entry.run))
            return
        except Exception:
            # Nobody foresaw it, but the run must not fall out of the line: its turn comes again, and the log says why.
            log.exception("claim failed", extra={"action": "claim_failed", "seq": entry.seq})
            handle.unreserve(alone=alone)
            self._alarms.after(_UNFORESEEN_RETRY_S, partial(self._due, entry.seq, entry.run))
            return
        except BaseException:
            handle.unreserve(alone=alone)
            raise
        if job is None:
            # Cancelled or expired between pop and claim; or the clock went backwards over its back-off.
            waiting = self.by_seq.get(entry.seq)
            if waiting is not None and waiting.run == entry.run and waiting.state is RunState.QUEUED:
                self._alarms.after(_LEDGER_RETRY_S, partial(self._due, entry.seq, entry.run))
            self.release(handle, alone=alone)
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
            self._alarms.after(_LEDGER_RETRY_S, partial(self._deadline, job.seq, job.run))
            return
        except Exception:
            log.exception("expiry failed", extra={"action": "expiry_failed", "seq": job.seq})
            self._alarms.after(_UNFORESEEN_RETRY_S, partial(self._deadline, job.seq, job.run))
            return
        if ended is not None:
            self.untrack(ended)
            self._changes.publish(ended)
        else:  # it has begun or ended; or the clock went backwards over its deadline, and it must not fall out of the line
            self._alarms.after(_LEDGER_RETRY_S, partial(self._due, job.seq, job.run))

    # ------------------------------------------------------------------ users who kill processes

    def judge(self, owner: Owner) -> None:
        """Pause a user whose jobs have killed too many worker processes; it ends by itself."""
        pause = self.breaker.judge(owner, self._clock.monotonic())
        if pause is None:
            return
        tenant, user = owner
        log.warning(
            "user %s paused: %s", user, pause.why,
            extra={"action": "user_paused", "tenant": tenant, "user": user, "for_s": PAUSE_S},
        )
        self.queue.pause(owner)
        self._alarms.after(PAUSE_S, self._resume)

    def _resume(self) -> None:
        for owner in self.breaker.resume(self._clock.monotonic()):
            log.info("user %s goes on", owner[1], extra={"action": "user_resumed", "tenant": owner[0], "user": owner[1]})
            self.queue.resume(owner)
        self.pump()

    # ------------------------------------------------------------------ why a run waits

    def waiting_for(self, job: JobRecord) -> str | None:
        """Say in a sentence what a queued run waits for; ``None`` if it does not wait."""
        if job.state is not RunState.QUEUED:
            return None
        if self.paused:
            return "the server to be started again: it is shutting down"
        wait_s = self._backoff_s(job)
        if wait_s > 0:
            return f"its next attempt, in {wait_s:.1f} s (back-off)"
        pause = self.breaker.pauses.get((job.tenant, job.opened_by or job.user))
        if pause is not None:
            left_s = max(pause.until - self._clock.monotonic(), 0.0)
            return f"the end of a pause of its user, in {left_s:.0f} s: {pause.why}"
        lane = Lane(job.service, job.version, job.suspect)
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
        if job.suspect:
            return (
                "a worker process for itself: it was in one that died, so nothing else may run beside it;"
                f" the agents have {sum(handle.nworkers for handle in able)} worker processes"
            )
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
        alone=job.suspect,
        tenant=job.tenant,
    )
