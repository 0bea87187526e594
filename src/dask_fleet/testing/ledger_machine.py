"""Random stories of a few jobs, told to several ledgers at once: Hypothesis rules and the invariants that must hold.

Subclass :class:`LedgerMachine`, say which ledgers to run in lockstep, and let pytest collect its ``TestCase``. The first one
is the reference: what the others answer must equal what it answers.
"""

# ruff: noqa: D102 - a rule is told by its name

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from dask_fleet.model.errors import Conflict
from dask_fleet.model.failure import Blame, Cause, Failure
from dask_fleet.model.jobs import (
    LONGEST_BACKOFF_S,
    AttemptEnd,
    AttemptRecord,
    EventRecord,
    JobFilter,
    JobRecord,
    Policy,
    StoredResult,
)
from dask_fleet.model.leases import LEASE_S, LEASE_TRANSITIONS, AgentLease, LeaseEvent, LeaseState
from dask_fleet.model.states import AttemptState, EventKind, RunEvent, RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance import ManualClock, end_of, request
from dask_fleet.testing.ledger_conformance.scenarios import scenario_timeout

NAMES = st.sampled_from(["a", "b", "c"])
AGENTS = st.sampled_from([None, "agent-1", "agent-2"])
LEASED = st.sampled_from(["agent-1", "agent-2"])
LEASE_US = int(LEASE_S * 1_000_000)
ENDINGS = {
    RunState.SUCCEEDED: EventKind.SUCCEEDED,
    RunState.FAILED: EventKind.FAILED,
    RunState.CANCELLED: EventKind.CANCELLED,
    RunState.EXPIRED: EventKind.EXPIRED,
}


class LedgerMachine(RuleBasedStateMachine):
    """Accepts, joins, refreshes, claims, ends, cancels, expires, reopens, purges; with zombies, clock jumps and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.loop = asyncio.new_event_loop()
        self.ledgers: list[Ledger] = []
        self.known: dict[str, JobRecord] = {}
        self.zombies: list[AttemptEnd] = []
        self.outcomes: dict[tuple[int, int], tuple[RunState, int | None]] = {}
        self.leases: dict[str, AgentLease] = {}
        self.lease_now_us = 0
        self.changes: dict[int, int] = {}
        """How many events each job's story must have: one for each change that a ledger reported."""

    # ------------------------------------------------------------------ to be said by the subclass

    def make_ledgers(self, clock: Clock) -> list[Ledger]:
        """Return ledgers that are not open yet, the reference first."""
        raise NotImplementedError

    async def crash(self, ledger: Ledger) -> Ledger:
        """Return an open ledger with what was durable in `ledger`, which is given up. By default nothing happens."""
        return ledger

    # ------------------------------------------------------------------ life

    @initialize()
    def begin(self) -> None:
        self.ledgers = self.make_ledgers(self.clock)
        for ledger in self.ledgers:
            self._run(ledger.open())

    def teardown(self) -> None:
        for ledger in self.ledgers:
            self._run(ledger.close())
        self._run(self.loop.shutdown_default_executor())
        self.loop.close()

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(scenario_timeout(awaitable))

    def _ask(self, question: Callable[[Ledger], Awaitable[Any]]) -> Any:
        """Return what all ledgers answer."""
        answers = [self._answer(question(ledger)) for ledger in self.ledgers]
        for answer in answers[1:]:
            assert answer == answers[0]
        return answers[0]

    def _get(self, name: str) -> JobRecord | None:
        found: JobRecord | None = self._ask(lambda ledger: ledger.get(name))
        return found

    def _attempts(self, job: JobRecord) -> list[AttemptRecord]:
        found: list[AttemptRecord] = self._ask(lambda ledger: ledger.attempts(job.seq))
        return found

    def _result(self, job: JobRecord, run: int) -> StoredResult | None:
        found: StoredResult | None = self._ask(lambda ledger: ledger.get_result(job.seq, run))
        return found

    def _answer(self, awaitable: Awaitable[Any]) -> Any:
        try:
            return self._run(awaitable)
        except Conflict as exc:
            return str(exc)

    def _now_known(self, job: JobRecord, events: int) -> None:
        self.known[job.job_id] = job
        self.changes[job.seq] = self.changes.get(job.seq, 0) + events
        if job.state is RunState.RUNNING:
            self.zombies.append(end_of(job))

    # ------------------------------------------------------------------ rules

    @rule(name=NAMES, refresh=st.booleans(), agent=AGENTS, deadline_s=st.sampled_from([None, -1, 5]),
          cache_s=st.sampled_from([3.0, 100.0]), tags=st.sampled_from([(), ("x",), ("x", "y")]))
    def accept(self, name: str, refresh: bool, agent: str | None, deadline_s: int | None, cache_s: float,  # noqa: FBT001
               tags: tuple[str, ...]) -> None:
        deadline_us = None if deadline_s is None else self.clock.now_us() + deadline_s * 1_000_000
        new = request(name, refresh=refresh, deadline_us=deadline_us, tags=tags, policy=Policy(cache_s=cache_s))
        before = self.known.get(name)
        accepted = self._ask(lambda ledger: ledger.accept(new, claim_for=agent))
        assert accepted.claimed == (accepted.opened and agent is not None and not accepted.job.suspect)
        if before is None:
            assert accepted.opened
            assert accepted.job.run == 1
        elif not before.state.is_terminal:
            assert not accepted.opened
        elif refresh or before.state is not RunState.SUCCEEDED:
            assert accepted.opened
        if before is not None:
            assert accepted.job.run == before.run + accepted.opened
        self._now_known(accepted.job, accepted.opened + accepted.claimed)

    @rule(name=NAMES, agent=AGENTS)
    def reopen(self, name: str, agent: str | None) -> None:
        job = self.known.get(name)
        if job is None:
            return
        accepted = self._ask(lambda ledger: ledger.reopen(job.seq, by="eve", claim_for=agent))
        if job.state is RunState.SUCCEEDED:
            assert isinstance(accepted, str)
            return
        assert accepted.opened == job.state.is_terminal
        self._now_known(accepted.job, accepted.opened + accepted.claimed)

    @rule(name=NAMES, wrong_run=st.booleans())
    def claim(self, name: str, wrong_run: bool) -> None:  # noqa: FBT001
        job = self.known.get(name)
        if job is None:
            return
        claimed = self._ask(lambda ledger: ledger.claim(job.seq, job.run + wrong_run, agent="agent-3"))
        wait_us = job.not_before_us - self.clock.now_us()
        due = job.state is RunState.QUEUED and not 0 < wait_us <= LONGEST_BACKOFF_S * 1_000_000 and not wrong_run
        assert (claimed is not None) == due
        if claimed is not None:
            assert claimed.attempt == job.attempt + 1
            self._now_known(claimed, 1)

    @rule(name=NAMES, event=st.sampled_from([RunEvent.SUCCEED, RunEvent.FAIL, RunEvent.REQUEUE, RunEvent.CANCEL]),
          lost=st.booleans(), wait_s=st.sampled_from([0, 4]), blame=st.sampled_from([None, *Blame]))
    def finish(self, name: str, event: RunEvent, lost: bool, wait_s: int, blame: Blame | None) -> None:  # noqa: FBT001
        job = self.known.get(name)
        if job is None:
            return
        end = end_of(job, event, not_before_us=self.clock.now_us() + wait_s * 1_000_000, counts_as_fault=lost)
        if lost and event is not RunEvent.SUCCEED:
            end = replace(end, attempt_state=AttemptState.LOST)
            if blame is not None:
                end = replace(
                    end, failure=Failure(cause=Cause.MEMORY_LIMIT, message="m"), makes_suspect=blame is not Blame.NONE,
                    counts_as_death=blame is Blame.ALONE, counts_as_memory_kill=blame is Blame.ALONE,
                    counts_as_loss=blame is not Blame.ALONE,
                )
        after = self._ask(lambda ledger: ledger.finish(end))
        assert (after is not None) == (job.state is RunState.RUNNING)
        if after is not None:
            if job.cancel_requested_by is not None:
                assert after.state is not RunState.QUEUED
            if event is not RunEvent.SUCCEED:
                assert after.deaths == job.deaths + end.counts_as_death
                assert after.suspect == (job.suspect or end.makes_suspect)
            self._now_known(after, 1)

    @rule(data=st.data())
    def zombie_finishes(self, data: st.DataObject) -> None:
        if not self.zombies:
            return
        end = data.draw(st.sampled_from(self.zombies))
        job = next((job for job in self.known.values() if job.seq == end.seq), None)
        if job is None or (job.state is RunState.RUNNING and job.attempt == end.attempt):
            return
        assert self._ask(lambda ledger: ledger.finish(end)) is None

    @rule(name=NAMES)
    def cancel(self, name: str) -> None:
        job = self.known.get(name)
        if job is None:
            return
        after = self._ask(lambda ledger: ledger.request_cancel(job.seq, job.run, by="bob"))
        assert (after is None) == job.state.is_terminal
        if after is not None:
            self._now_known(after, int(after != job))

    @rule(name=NAMES)
    def expire(self, name: str) -> None:
        job = self.known.get(name)
        if job is None:
            return
        after = self._ask(lambda ledger: ledger.expire(job.seq, job.run))
        if after is not None:
            assert job.state is RunState.QUEUED
            assert job.deadline_us is not None
            assert job.deadline_us <= self.clock.now_us()
            self._now_known(after, 1)

    @rule(agent=LEASED)
    def grant_lease(self, agent: str) -> None:
        before = self.leases.get(agent)
        lease = self._ask(lambda ledger: ledger.grant_lease(agent, name=agent, pool="p"))
        assert lease.state is LeaseState.HELD
        assert lease.expires_us == self._lease_now_us() + LEASE_US
        if before is not None:
            assert lease.epoch == before.epoch + (before.state is not LeaseState.HELD)
        self.leases[agent] = lease

    @rule(agents=st.lists(LEASED, unique=True), stale=st.booleans())
    def renew_leases(self, agents: list[str], stale: bool) -> None:  # noqa: FBT001
        asked = [(agent, self.leases[agent].epoch - stale) for agent in agents if agent in self.leases]
        refused = self._ask(lambda ledger: ledger.renew_leases(asked))
        now_us = self._lease_now_us()
        for agent, _ in asked:
            lease = self.leases[agent]
            assert (agent in refused) == (stale or lease.state is not LeaseState.HELD)
            if agent not in refused:
                self.leases[agent] = replace(lease, expires_us=now_us + LEASE_US)

    @rule(agent=LEASED, event=st.sampled_from([LeaseEvent.LAPSE, LeaseEvent.RELEASE]), stale=st.booleans())
    def end_lease(self, agent: str, event: LeaseEvent, stale: bool) -> None:  # noqa: FBT001
        lease = self.leases.get(agent)
        epoch = 1 if lease is None else lease.epoch - stale
        due = event is LeaseEvent.RELEASE or (lease is not None and lease.expires_us <= self._lease_now_us())
        ended = self._ask(lambda ledger: ledger.end_lease(agent, epoch, event))
        assert ended == (lease is not None and not stale and lease.state is LeaseState.HELD and due)
        if ended and lease is not None:
            self.leases[agent] = replace(
                lease, state=LEASE_TRANSITIONS.next(lease.state, event), ended_us=self.clock.now_us()
            )

    def _lease_now_us(self) -> int:
        answers = {ledger.lease_now_us() for ledger in self.ledgers}
        assert len(answers) == 1
        (now_us,) = answers
        assert now_us >= self.lease_now_us
        self.lease_now_us = now_us
        return now_us

    @rule(seconds=st.sampled_from([1, 5, 200, -3, -1000]))
    def jump_clock(self, seconds: int) -> None:
        before_us = self._lease_now_us()
        self.clock.jump(seconds)
        assert self._lease_now_us() == before_us

    @rule(seconds=st.sampled_from([1, 5, 20]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self._lease_now_us()

    @rule()
    def purge(self) -> None:
        self._ask(lambda ledger: ledger.purge_results())
        self._ask(lambda ledger: ledger.purge_jobs(finished_before_us=self.clock.now_us() - 100_000_000))
        for name, job in list(self.known.items()):
            found = self._get(name)
            if found is None:
                assert job.state.is_terminal
                del self.known[name]
            else:
                assert replace(found, result_run=None, result_expires_us=None) == replace(
                    job, result_run=None, result_expires_us=None)
                self.known[name] = found

    @rule()
    def crash_and_come_back(self) -> None:
        for index, ledger in enumerate(self.ledgers):
            self.ledgers[index] = self._run(self.crash(ledger))

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def the_ledgers_hold_what_they_answered(self) -> None:
        for name in ("a", "b", "c"):
            assert self._get(name) == self.known.get(name)
        living = sorted((job for job in self.known.values()), key=lambda job: job.seq)
        page = self._ask(lambda ledger: ledger.list_jobs(JobFilter(tenant="default")))
        assert page.jobs == living[::-1]
        unfinished = self._ask(lambda ledger: ledger.unfinished())
        assert unfinished == [job for job in living if not job.state.is_terminal]
        counts = self._ask(lambda ledger: ledger.counts())
        assert counts == {
            str(state): sum(job.state is state for job in living) for state in (RunState.QUEUED, RunState.RUNNING)
        }

    @invariant()
    def leases_are_as_they_were_left(self) -> None:
        """However the ledgers were ended meanwhile, and whatever the wall clock did."""
        self._lease_now_us()
        kept = self._ask(lambda ledger: ledger.leases())
        since_us = self.clock.now_us() - 86_400 * 1_000_000
        assert kept == [
            lease for _, lease in sorted(self.leases.items()) if lease.ended_us is None or lease.ended_us > since_us
        ]

    @invariant()
    def each_run_has_at_most_one_outcome_that_never_changes(self) -> None:
        for job in self.known.values():
            if job.state.is_terminal:
                outcome = (job.state, job.finished_us)
                assert self.outcomes.setdefault((job.seq, job.run), outcome) == outcome
            else:
                assert (job.seq, job.run) not in self.outcomes

    @invariant()
    def each_change_has_its_event_and_each_run_one_end(self) -> None:
        for job in self.known.values():
            stories = [self._run(ledger.events(job.seq)) for ledger in self.ledgers]
            for story in stories[1:]:
                assert [replace(event, event_id=0) for event in story] == [
                    replace(event, event_id=0) for event in stories[0]]
            for story in stories:
                self._check_story(job, story)

    def _check_story(self, job: JobRecord, story: list[EventRecord]) -> None:
        assert len(story) == self.changes[job.seq]
        ids = [event.event_id for event in story]
        assert ids == sorted(set(ids))
        assert story[0].kind is EventKind.ACCEPTED
        for run in range(1, job.run + 1):
            ends = [event.kind for event in story if event.run == run and event.kind in ENDINGS.values()]
            if run < job.run:
                assert len(ends) == 1
            else:
                assert ends == ([ENDINGS[job.state]] if job.state.is_terminal else [])

    @invariant()
    def attempts_ascend_and_at_most_one_is_running(self) -> None:
        for job in self.known.values():
            attempts = self._attempts(job)
            assert [attempt.attempt for attempt in attempts] == list(range(1, job.attempt + 1))
            assert [attempt.run for attempt in attempts] == sorted(attempt.run for attempt in attempts)
            running = [attempt for attempt in attempts if attempt.state is AttemptState.RUNNING]
            assert len(running) == (job.state is RunState.RUNNING)
            assert not running or running[0] is attempts[-1]
            winners = [attempt.run for attempt in attempts if attempt.state is AttemptState.SUCCEEDED]
            assert len(winners) == len(set(winners))

    @invariant()
    def a_result_is_there_exactly_with_a_success(self) -> None:
        for job in self.known.values():
            kept = self._result(job, job.run)
            assert (kept is not None) == (job.state is RunState.SUCCEEDED and job.result_run == job.run)
            if job.result_run is not None:
                shown = self._result(job, job.result_run)
                assert shown is not None
                assert shown.expires_us == job.result_expires_us
