"""What every ledger must do, sentence by sentence of :class:`dask_fleet.plugins.ledger.Ledger`.

A plug-in's tests subclass :class:`LedgerConformance`, say how a ledger is made, and let pytest collect it::

    class TestMyLedger(LedgerConformance):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.folder = tmp_path

        def make_ledger(self, clock):
            return MyLedger(self.folder / "ledger", clock=clock)
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dask_fleet.model.errors import Conflict, IdempotencyMismatch, InvalidTransition, LedgerUnavailable, NotFound
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import (
    AttemptEnd,
    JobFilter,
    JobRecord,
    NewRun,
    Policy,
    StoredResult,
    TokenRecord,
)
from dask_fleet.model.states import AttemptState, EventKind, OpenReason, RunEvent, RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
SCENARIO_TIMEOUT_S = 60.0


class ManualClock:
    """Time that moves when it is told to."""

    def __init__(self, now_us: int = 1_700_000_000 * SECOND_US) -> None:
        self._now_us = now_us
        self._monotonic = 0.0

    def now_us(self) -> int:
        """Return UTC in microseconds since 1970."""
        return self._now_us

    def monotonic(self) -> float:
        """Return seconds that `jump` does not touch."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_us += round(seconds * SECOND_US)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock, forth or back; no time passes."""
        self._now_us += round(seconds * SECOND_US)


def request(name: str = "job-a", **changes: Any) -> NewRun:
    """Return a request; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "job_id": name, "tenant": "default", "service": "flights", "endpoint": "delay", "version": "1+abc",
        "params": b'{"month":1}', "user": "ada", "policy": Policy(cache_s=3600.0, retries=2),
    }
    return NewRun(**(fields | changes))


def result(body: bytes = b"42", **changes: Any) -> StoredResult:
    """Return a small result; `changes` replace its fields."""
    fields: dict[str, Any] = {"media_type": "application/json", "digest": "ab" * 32, "size": len(body), "body": body}
    return StoredResult(**(fields | changes))


def end_of(job: JobRecord, event: RunEvent = RunEvent.SUCCEED, **changes: Any) -> AttemptEnd:
    """Return the end of a job's current attempt; `changes` replace its fields."""
    states = {
        RunEvent.SUCCEED: AttemptState.SUCCEEDED, RunEvent.CANCEL: AttemptState.CANCELLED,
        RunEvent.FAIL: AttemptState.FAILED, RunEvent.REQUEUE: AttemptState.FAILED,
    }
    failed = event in {RunEvent.FAIL, RunEvent.REQUEUE}
    fields: dict[str, Any] = {
        "seq": job.seq, "run": job.run, "attempt": job.attempt, "attempt_state": states[event], "run_event": event,
        "worker": "w-1", "finished_us": (job.started_us or 0) + 5,
        "failure": Failure.bounded(Cause.EXCEPTION, "boom", type="ValueError") if failed else None,
        "result": result() if event is RunEvent.SUCCEED else None,
    }
    return AttemptEnd(**(fields | changes))


def some(job: JobRecord | None) -> JobRecord:
    """Return the record of a write that must not have been refused."""
    assert job is not None, "the ledger refused"
    return job


Scenario = Callable[[Any, Ledger, ManualClock], Awaitable[None]]


def scenario(test: Scenario) -> Callable[[Any], None]:
    """Make a test of a coroutine that takes an open ledger and its clock."""

    def collected(self: LedgerConformance) -> None:
        async def act() -> None:
            clock = ManualClock()
            ledger = self.make_ledger(clock)
            await ledger.open()
            try:
                async with asyncio.timeout(SCENARIO_TIMEOUT_S):
                    await test(self, ledger, clock)
            finally:
                await ledger.close()

        asyncio.run(act())

    collected.__name__ = test.__name__
    collected.__doc__ = test.__doc__
    collected.__qualname__ = test.__qualname__
    return collected


async def kinds(ledger: Ledger, seq: int) -> list[EventKind]:
    """Return the kinds of a job's events."""
    return [event.kind for event in await ledger.events(seq)]


async def listed(ledger: Ledger, where: JobFilter, *, limit: int = 50) -> list[str]:
    """Return the ids that all pages of a listing give."""
    found: list[str] = []
    before: int | None = None
    while True:
        page = await ledger.list_jobs(where, before_seq=before, limit=limit)
        assert len(page.jobs) <= limit
        found += [job.job_id for job in page.jobs]
        if page.next_before_seq is None:
            return found
        assert before is None or page.next_before_seq < before, "the cursor stands still"
        before = page.next_before_seq


class LedgerConformance(ABC):
    """Subclass it and say how a ledger is made."""

    @abstractmethod
    def make_ledger(self, clock: Clock) -> Ledger:
        """Return a ledger that is not open yet; again the same one after it was closed."""

    async def reopened(self, ledger: Ledger, clock: Clock) -> Ledger:
        """Close `ledger` and return an open one with its contents; overridden where the object is the store."""
        await ledger.close()
        again = self.make_ledger(clock)
        await again.open()
        return again

    # ------------------------------------------------------------------ life

    @scenario
    async def test_everything_is_there_after_closing_and_opening(self, ledger: Ledger, clock: ManualClock) -> None:
        made = ledger.ledger_id
        assert made
        await ledger.accept(request("done", tags=("t",)), claim_for="agent")
        done = some(await ledger.finish(end_of(some(await ledger.get("done")))))
        queued = (await ledger.accept(request("queued", params=b"x" * 5000))).job
        story = await ledger.events(done.seq)
        again = await self.reopened(ledger, clock)
        try:
            assert again.ledger_id == made
            assert await again.get("done") == done
            assert await again.get("queued") == queued
            assert await again.events(done.seq) == story
            later = (await again.accept(request("later"))).job
            assert later.seq > queued.seq
            assert (await again.events(later.seq))[0].event_id > (await again.events(queued.seq))[-1].event_id
        finally:
            await again.close()

    @scenario
    async def test_closing_twice_is_harmless_and_closed_is_closed(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.close()
        await ledger.close()
        with pytest.raises(LedgerUnavailable):
            await ledger.accept(request())

    # ------------------------------------------------------------------ accept

    @scenario
    async def test_an_unknown_id_opens_job_and_run_1(self, ledger: Ledger, clock: ManualClock) -> None:
        new = request(priority=7, deadline_us=clock.now_us() + 9, tags=("b", "a", "b"))
        accepted = await ledger.accept(new)
        job = accepted.job
        assert (accepted.opened, accepted.claimed) == (True, False)
        assert (job.run, job.state, job.attempt, job.agent, job.reason) == (1, RunState.QUEUED, 0, None, OpenReason.POST)
        assert (job.job_id, job.tenant, job.service, job.endpoint, job.version, job.params, job.user) == (
            "job-a", "default", "flights", "delay", "1+abc", b'{"month":1}', "ada")
        assert (job.policy, job.pure, job.priority, job.deadline_us) == (new.policy, True, 7, new.deadline_us)
        assert (job.created_us, job.opened_us, job.opened_by) == (clock.now_us(), clock.now_us(), "ada")
        assert sorted(job.tags) == ["a", "b"]
        assert await ledger.get("job-a") == job
        (event,) = await ledger.events(job.seq)
        assert (event.kind, event.run, event.at_us, event.data["by"]) == (EventKind.ACCEPTED, 1, clock.now_us(), "ada")
        assert await ledger.attempts(job.seq) == []

    @scenario
    async def test_with_claim_for_attempt_1_is_claimed_in_the_same_write(self, ledger: Ledger, clock: ManualClock) -> None:
        accepted = await ledger.accept(request(), claim_for="agent-1")
        job = accepted.job
        assert (accepted.opened, accepted.claimed) == (True, True)
        assert (job.state, job.attempt, job.agent, job.started_us) == (RunState.RUNNING, 1, "agent-1", clock.now_us())
        assert await ledger.get("job-a") == job
        assert await kinds(ledger, job.seq) == [EventKind.ACCEPTED, EventKind.STARTED]
        (attempt,) = await ledger.attempts(job.seq)
        assert (attempt.run, attempt.attempt, attempt.state, attempt.agent) == (1, 1, AttemptState.RUNNING, "agent-1")

    @scenario
    async def test_a_queued_or_running_run_is_joined_also_by_a_refresh(self, ledger: Ledger, clock: ManualClock) -> None:
        first = (await ledger.accept(request())).job
        for refresh in (False, True):
            again = await ledger.accept(request(refresh=refresh, user="bob", priority=50), claim_for="agent")
            assert (again.job, again.opened, again.claimed) == (first, False, False)
        running = some(await ledger.claim(first.seq, 1, agent="agent"))
        for refresh in (False, True):
            again = await ledger.accept(request(refresh=refresh, user="bob"), claim_for="other")
            assert (again.job, again.opened, again.claimed) == (running, False, False)
        assert await kinds(ledger, first.seq) == [EventKind.ACCEPTED, EventKind.STARTED]

    @scenario
    async def test_a_kept_result_is_found(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        done = some(await ledger.finish(end_of(job)))
        clock.advance(3599)
        again = await ledger.accept(request(), claim_for="agent")
        assert (again.job, again.opened, again.claimed) == (done, False, False)

    @scenario
    async def test_an_expired_result_opens_the_next_run(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(end_of(job))
        clock.advance(3600)
        again = await ledger.accept(request())
        assert again.opened
        assert (again.job.run, again.job.state, again.job.reason) == (2, RunState.QUEUED, OpenReason.POST)

    @scenario
    async def test_a_purged_result_opens_the_next_run(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(end_of(job))
        clock.advance(3600)
        await ledger.purge_results()
        clock.jump(-3600)  # were the old expiry still believed, the result would be promised
        again = await ledger.accept(request())
        assert (again.opened, again.job.run) == (True, 2)

    @scenario
    async def test_failed_cancelled_and_expired_jobs_are_opened_again(self, ledger: Ledger, clock: ManualClock) -> None:
        failed = (await ledger.accept(request("failed"), claim_for="agent")).job
        await ledger.finish(end_of(failed, RunEvent.FAIL))
        cancelled = (await ledger.accept(request("cancelled"))).job
        await ledger.request_cancel(cancelled.seq, 1, by="bob")
        late = (await ledger.accept(request("expired", deadline_us=clock.now_us()))).job
        await ledger.expire(late.seq, 1)
        for name, attempts in (("failed", 1), ("cancelled", 0), ("expired", 0)):
            policy = Policy(timeout_s=5.0)
            clock.advance(1)
            again = await ledger.accept(request(name, user="bob", policy=policy, priority=3, deadline_us=clock.now_us() + 1))
            job = again.job
            assert again.opened
            assert (job.run, job.state, job.reason, job.attempt) == (2, RunState.QUEUED, OpenReason.POST, attempts)
            assert (job.user, job.opened_by, job.opened_us) == ("ada", "bob", clock.now_us())
            assert (job.policy, job.priority, job.deadline_us) == (policy, 3, clock.now_us() + 1)
            assert (job.failure, job.finished_us, job.started_us, job.cancel_requested_by) == (None, None, None, None)
            assert (job.exceptions, job.faults, job.not_before_us) == (0, 0, 0)
            assert await ledger.get(name) == job
            event = (await ledger.events(job.seq))[-1]
            assert (event.kind, event.run, event.data["by"], event.data["reason"]) == (
                EventKind.REOPENED, 2, "bob", "post")

    @scenario
    async def test_attempt_numbers_ascend_over_runs(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(end_of(job, RunEvent.FAIL))
        again = await ledger.accept(request(), claim_for="agent-2")
        assert (again.claimed, again.job.attempt, again.job.run, again.job.state) == (True, 2, 2, RunState.RUNNING)
        assert [(a.run, a.attempt, a.state) for a in await ledger.attempts(job.seq)] == [
            (1, 1, AttemptState.FAILED), (2, 2, AttemptState.RUNNING)]

    @scenario
    async def test_during_a_refresh_the_old_result_is_kept(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        done = some(await ledger.finish(end_of(job, result=result(b"old"))))
        refreshing = await ledger.accept(request(refresh=True), claim_for="agent")
        assert (refreshing.opened, refreshing.job.run, refreshing.job.reason) == (True, 2, OpenReason.REFRESH)
        assert (refreshing.job.result_run, refreshing.job.result_expires_us) == (1, done.result_expires_us)
        kept = await ledger.get_result(job.seq, 1)
        assert kept is not None
        assert kept.body == b"old"
        clock.advance(10)
        fresh = some(await ledger.finish(end_of(refreshing.job, result=result(b"new"))))
        assert (fresh.result_run, fresh.result_expires_us) == (2, clock.now_us() + HOUR_US)
        kept = await ledger.get_result(job.seq, 2)
        assert kept is not None
        assert kept.body == b"new"

    @scenario
    async def test_a_failed_refresh_keeps_the_old_result_but_serves_no_failure(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(end_of(job))
        refreshing = (await ledger.accept(request(refresh=True), claim_for="agent")).job
        failed = some(await ledger.finish(end_of(refreshing, RunEvent.FAIL)))
        assert (failed.state, failed.result_run) == (RunState.FAILED, 1)
        assert await ledger.get_result(job.seq, 1) is not None
        again = await ledger.accept(request())
        assert (again.opened, again.job.run) == (True, 3)

    @scenario
    async def test_a_superseded_result_goes_with_the_next_hour(self, ledger: Ledger, clock: ManualClock) -> None:
        long = Policy(cache_s=1e6)
        job = (await ledger.accept(request(policy=long), claim_for="agent")).job
        await ledger.finish(end_of(job, result=StoredResult(media_type="x/y", digest="d", size=9, location="old")))
        refreshing = (await ledger.accept(request(refresh=True, policy=long), claim_for="agent")).job
        await ledger.finish(end_of(refreshing))
        clock.advance(3600)
        assert await ledger.purge_results() == ["old"]
        assert some(await ledger.get("job-a")).result_run == 2
        assert await ledger.get_result(job.seq, 2) is not None

    @scenario
    async def test_tags_are_added(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.accept(request(tags=("a",)))
        again = await ledger.accept(request(tags=("b", "a")))
        assert not again.opened
        assert sorted(again.job.tags) == ["a", "b"]
        assert some(await ledger.get("job-a")) == again.job
        for tag in ("a", "b"):
            assert await listed(ledger, JobFilter(tenant="default", tag=tag)) == ["job-a"]

    @scenario
    async def test_an_idempotency_key_stands_for_one_request(self, ledger: Ledger, clock: ManualClock) -> None:
        keyed = {"idempotency_key": "k", "request_digest": b"1"}
        first = await ledger.accept(request("a", **keyed), claim_for="agent")
        done = some(await ledger.finish(end_of(first.job, RunEvent.FAIL)))
        # Another id under the same digest: an impure endpoint makes a fresh one for each request.
        again = await ledger.accept(request("b", **keyed), claim_for="agent")
        assert (again.job, again.opened, again.claimed) == (done, False, False)
        assert await ledger.get("b") is None
        with pytest.raises(IdempotencyMismatch):
            await ledger.accept(request("c", idempotency_key="k", request_digest=b"2"))
        assert await ledger.get("c") is None
        # The key is its user's and tenant's own.
        assert (await ledger.accept(request("d", user="bob", idempotency_key="k", request_digest=b"2"))).opened
        assert (await ledger.accept(request("e", tenant="other", idempotency_key="k", request_digest=b"2"))).opened

    @scenario
    async def test_a_key_for_a_known_job_stands_for_that_job(self, ledger: Ledger, clock: ManualClock) -> None:
        first = await ledger.accept(request("a"))
        joined = await ledger.accept(request("a", idempotency_key="k", request_digest=b"1"))
        assert (joined.job, joined.opened) == (first.job, False)
        assert (await ledger.accept(request("b", idempotency_key="k", request_digest=b"1"))).job == first.job

    @scenario
    async def test_idempotency_keys_are_forgotten_after_a_day(self, ledger: Ledger, clock: ManualClock) -> None:
        keyed = {"idempotency_key": "k", "request_digest": b"1"}
        await ledger.accept(request("a", **keyed))
        clock.advance(86_399)
        await ledger.purge_jobs(finished_before_us=0)
        assert not (await ledger.accept(request("b", **keyed))).opened
        clock.advance(2)
        await ledger.purge_jobs(finished_before_us=0)
        assert (await ledger.accept(request("b", **keyed))).opened

    @scenario
    async def test_of_a_thousand_equal_requests_at_once_one_opens(self, ledger: Ledger, clock: ManualClock) -> None:
        answers = await asyncio.gather(*(ledger.accept(request(user=f"u{n}"), claim_for="agent") for n in range(1000)))
        assert sum(answer.opened for answer in answers) == 1
        assert sum(answer.claimed for answer in answers) == 1
        assert len({answer.job.seq for answer in answers}) == 1
        assert await kinds(ledger, answers[0].job.seq) == [EventKind.ACCEPTED, EventKind.STARTED]

    @scenario
    async def test_handles_ascend_in_order_of_acceptance(self, ledger: Ledger, clock: ManualClock) -> None:
        answers = await asyncio.gather(*(ledger.accept(request(f"j{n}")) for n in range(50)))
        seqs = [answer.job.seq for answer in answers]
        assert seqs == sorted(set(seqs))

    @scenario
    async def test_a_write_that_raises_takes_none_of_the_others_with_it(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.accept(request("k", idempotency_key="k", request_digest=b"1"))
        running = (await ledger.accept(request("r"), claim_for="agent")).job
        writes: list[Awaitable[Any]] = []
        for n in range(30):
            writes.append(ledger.accept(request(f"good-{n}")))
            if n == 10:
                writes.append(ledger.accept(request("bad", idempotency_key="k", request_digest=b"2")))
            if n == 20:
                writes.append(ledger.finish(end_of(running, RunEvent.FAIL, attempt_state=AttemptState.SUCCEEDED)))
            if n == 25:  # no column holds such a number: it fails in the middle of its write
                writes.append(ledger.accept(request("huge", priority=1 << 70, tags=("x",))))
        answers = await asyncio.gather(*writes, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        assert {type(error) for error in errors} >= {IdempotencyMismatch, InvalidTransition}
        assert len(await listed(ledger, JobFilter(tenant="default", state=RunState.QUEUED))) >= 31
        for n in range(30):
            assert await kinds(ledger, some(await ledger.get(f"good-{n}")).seq) == [EventKind.ACCEPTED]
        assert await ledger.get("r") == running
        assert await ledger.get("bad") is None

    @scenario
    async def test_a_caller_that_is_cancelled_does_not_undo_its_write(self, ledger: Ledger, clock: ManualClock) -> None:
        caller = asyncio.create_task(self._accept(ledger), name="caller")
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await ledger.accept(request("after"))
        assert await ledger.get("job-a") is not None

    @staticmethod
    async def _accept(ledger: Ledger) -> None:
        await ledger.accept(request())

    # ------------------------------------------------------------------ reopen

    @scenario
    async def test_reopen_of_an_ended_job(self, ledger: Ledger, clock: ManualClock) -> None:
        policy = Policy(timeout_s=9.0)
        first = request(policy=policy, priority=5, deadline_us=clock.now_us() + HOUR_US, params=b"y" * 3000)
        job = (await ledger.accept(first, claim_for="agent")).job
        await ledger.finish(end_of(job, RunEvent.FAIL))
        again = await ledger.reopen(job.seq, by="bob", claim_for="agent-2")
        assert (again.opened, again.claimed) == (True, True)
        after = again.job
        assert (after.run, after.attempt, after.state, after.reason) == (2, 2, RunState.RUNNING, OpenReason.RETRY)
        assert (after.policy, after.priority, after.params, after.deadline_us) == (policy, 5, b"y" * 3000, None)
        assert (after.opened_by, after.agent, after.failure) == ("bob", "agent-2", None)
        assert await ledger.get("job-a") == after
        assert await kinds(ledger, job.seq) == [
            EventKind.ACCEPTED, EventKind.STARTED, EventKind.FAILED, EventKind.REOPENED, EventKind.STARTED]

    @scenario
    async def test_reopen_joins_what_is_under_way_and_refuses_what_succeeded(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        job = (await ledger.accept(request())).job
        again = await ledger.reopen(job.seq, by="bob", claim_for="agent")
        assert (again.job, again.opened, again.claimed) == (job, False, False)
        running = some(await ledger.claim(job.seq, 1, agent="agent"))
        assert (await ledger.reopen(job.seq, by="bob")).job == running
        done = some(await ledger.finish(end_of(running)))
        with pytest.raises(Conflict) as refused:
            await ledger.reopen(job.seq, by="bob")
        assert refused.value.extra["job_status"] == "succeeded"
        assert await ledger.get("job-a") == done
        with pytest.raises(NotFound):
            await ledger.reopen(job.seq + 1000, by="bob")

    # ------------------------------------------------------------------ claim

    @scenario
    async def test_claim(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        clock.advance(2)
        running = some(await ledger.claim(job.seq, 1, agent="agent"))
        assert (running.state, running.attempt, running.agent) == (RunState.RUNNING, 1, "agent")
        assert (running.started_us, running.run) == (clock.now_us(), 1)
        assert await ledger.get("job-a") == running
        event = (await ledger.events(job.seq))[-1]
        assert (event.kind, event.attempt, event.data["agent"]) == (EventKind.STARTED, 1, "agent")

    @scenario
    async def test_claim_is_refused_unless_current_queued_and_due(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        assert await ledger.claim(job.seq, 2, agent="a") is None
        assert await ledger.claim(job.seq + 1000, 1, agent="a") is None
        running = some(await ledger.claim(job.seq, 1, agent="a"))
        assert await ledger.claim(job.seq, 1, agent="b") is None
        await ledger.finish(end_of(running, RunEvent.REQUEUE, not_before_us=clock.now_us() + SECOND_US))
        clock.jump(1 - 1e-6)
        assert await ledger.claim(job.seq, 1, agent="a") is None
        clock.jump(1e-6)
        second = some(await ledger.claim(job.seq, 1, agent="a"))
        assert second.attempt == 2
        await ledger.finish(end_of(second))
        assert await ledger.claim(job.seq, 1, agent="a") is None
        assert (await kinds(ledger, job.seq)).count(EventKind.STARTED) == 2

    @scenario
    async def test_of_many_claims_at_once_one_wins(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        answers = await asyncio.gather(*(ledger.claim(job.seq, 1, agent=f"a{n}") for n in range(100)))
        assert len([answer for answer in answers if answer is not None]) == 1
        assert len(await ledger.attempts(job.seq)) == 1

    # ------------------------------------------------------------------ finish

    @scenario
    async def test_success(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        clock.advance(3)
        given = result(b"\x00\xff", json=b'"x"', media_type="image/png")
        done = some(await ledger.finish(end_of(job, result=given, worker="w-9", finished_us=77)))
        assert (done.state, done.finished_us, done.agent, done.failure) == (
            RunState.SUCCEEDED, clock.now_us(), None, None)
        assert (done.result_run, done.result_expires_us) == (1, clock.now_us() + HOUR_US)
        assert await ledger.get("job-a") == done
        kept = await ledger.get_result(job.seq, 1)
        assert kept is not None
        assert (kept.body, kept.json, kept.media_type, kept.digest, kept.size, kept.location) == (
            b"\x00\xff", b'"x"', "image/png", "ab" * 32, 2, None)
        assert (kept.run, kept.created_us, kept.expires_us) == (1, clock.now_us(), clock.now_us() + HOUR_US)
        (attempt,) = await ledger.attempts(job.seq)
        assert (attempt.state, attempt.worker, attempt.agent, attempt.finished_us, attempt.started_us) == (
            AttemptState.SUCCEEDED, "w-9", "agent", 77, job.started_us)
        assert await kinds(ledger, job.seq) == [EventKind.ACCEPTED, EventKind.STARTED, EventKind.SUCCEEDED]
        assert await ledger.get_result(job.seq, 2) is None

    @scenario
    async def test_failure(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        failure = Failure.bounded(Cause.INVALID_PARAMETERS, "no", errors=[{"loc": ["month"], "msg": "too big"}])
        failed = some(await ledger.finish(end_of(job, RunEvent.FAIL, failure=failure)))
        assert (failed.state, failed.failure, failed.finished_us, failed.agent) == (
            RunState.FAILED, failure, clock.now_us(), None)
        assert await ledger.get("job-a") == failed
        (attempt,) = await ledger.attempts(job.seq)
        assert (attempt.state, attempt.failure) == (AttemptState.FAILED, failure)
        event = (await ledger.events(job.seq))[-1]
        assert (event.kind, event.attempt, event.data["cause"]) == (EventKind.FAILED, 1, "invalid_parameters")
        assert await ledger.get_result(job.seq, 1) is None

    @scenario
    async def test_requeue_counts_and_waits(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        due = clock.now_us() + 5 * SECOND_US
        queued = some(await ledger.finish(end_of(job, RunEvent.REQUEUE, not_before_us=due, counts_as_exception=True)))
        assert (queued.state, queued.not_before_us, queued.exceptions, queued.faults) == (RunState.QUEUED, due, 1, 0)
        assert (queued.agent, queued.finished_us, queued.attempt) == (None, None, 1)
        assert queued.failure is not None
        assert queued.failure.message == "boom"
        assert await ledger.get("job-a") == queued
        assert (await ledger.events(job.seq))[-1].kind is EventKind.RETRYING
        clock.advance(5)
        running = some(await ledger.claim(job.seq, 1, agent="agent"))
        lost = end_of(running, RunEvent.REQUEUE, attempt_state=AttemptState.LOST, counts_as_fault=True,
                      failure=Failure.bounded(Cause.WORKER_DIED, "killed"))
        queued = some(await ledger.finish(lost))
        assert (queued.exceptions, queued.faults) == (1, 1)
        assert [attempt.state for attempt in await ledger.attempts(job.seq)] == [AttemptState.FAILED, AttemptState.LOST]

    @scenario
    async def test_the_fence_refuses_zombies(self, ledger: Ledger, clock: ManualClock) -> None:
        first = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(end_of(first, RunEvent.REQUEUE, attempt_state=AttemptState.LOST))
        assert await ledger.finish(end_of(first)) is None  # queued
        second = some(await ledger.claim(first.seq, 1, agent="agent"))
        for zombie in (end_of(first), end_of(first, RunEvent.FAIL), end_of(second, run=2), end_of(second, attempt=3),
                       end_of(second, seq=second.seq + 1000)):
            assert await ledger.finish(zombie) is None
        assert await ledger.get("job-a") == second
        done = some(await ledger.finish(end_of(second, result=result(b"second"))))
        for zombie in (end_of(first), end_of(second), end_of(second, RunEvent.FAIL), end_of(second, RunEvent.REQUEUE)):
            assert await ledger.finish(zombie) is None
        assert await ledger.get("job-a") == done
        third = (await ledger.accept(request(refresh=True), claim_for="agent")).job
        assert await ledger.finish(end_of(second)) is None
        assert await ledger.get("job-a") == third
        kept = await ledger.get_result(first.seq, 1)
        assert kept is not None
        assert kept.body == b"second"
        assert (await kinds(ledger, first.seq)).count(EventKind.SUCCEEDED) == 1

    @scenario
    async def test_of_many_ends_at_once_one_counts(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        ends = [end_of(job, result=result(b"%d" % n)) if n % 2 else end_of(job, RunEvent.FAIL) for n in range(50)]
        answers = await asyncio.gather(*(ledger.finish(end) for end in ends))
        (won,) = [answer for answer in answers if answer is not None]
        assert await ledger.get("job-a") == won
        assert len(await ledger.attempts(job.seq)) == 1

    @scenario
    async def test_an_end_that_contradicts_itself_is_refused_loudly(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        wrong = [
            end_of(job, attempt_state=AttemptState.FAILED),
            end_of(job, RunEvent.FAIL, attempt_state=AttemptState.SUCCEEDED),
            end_of(job, RunEvent.REQUEUE, attempt_state=AttemptState.CANCELLED),
            end_of(job, RunEvent.FAIL, attempt_state=AttemptState.RUNNING),
            end_of(job, result=None),
            end_of(job, RunEvent.FAIL, result=result()),
        ]
        for end in wrong:
            with pytest.raises(InvalidTransition):
                await ledger.finish(end)
        assert await ledger.get("job-a") == job
        assert len(await ledger.events(job.seq)) == 2

    # ------------------------------------------------------------------ cancel, expire

    @scenario
    async def test_a_queued_run_is_cancelled_at_once(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        cancelled = some(await ledger.request_cancel(job.seq, 1, by="bob"))
        assert (cancelled.state, cancelled.finished_us, cancelled.cancel_requested_by) == (
            RunState.CANCELLED, clock.now_us(), "bob")
        assert await ledger.get("job-a") == cancelled
        event = (await ledger.events(job.seq))[-1]
        assert (event.kind, event.data["by"]) == (EventKind.CANCELLED, "bob")
        assert await ledger.request_cancel(job.seq, 1, by="eve") is None
        assert await ledger.claim(job.seq, 1, agent="agent") is None
        assert len(await ledger.events(job.seq)) == 2

    @scenario
    async def test_of_a_running_run_the_wish_is_recorded_once(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        wished = some(await ledger.request_cancel(job.seq, 1, by="bob"))
        assert (wished.state, wished.cancel_requested_by, wished.agent) == (RunState.RUNNING, "bob", "agent")
        assert await ledger.request_cancel(job.seq, 1, by="eve") == wished
        assert await kinds(ledger, job.seq) == [EventKind.ACCEPTED, EventKind.STARTED, EventKind.CANCEL_REQUESTED]
        ended = some(await ledger.finish(end_of(job, RunEvent.CANCEL)))
        assert (ended.state, ended.agent, ended.finished_us) == (RunState.CANCELLED, None, clock.now_us())
        event = (await ledger.events(job.seq))[-1]
        assert (event.kind, event.data["by"]) == (EventKind.CANCELLED, "bob")

    @scenario
    async def test_a_run_to_be_cancelled_is_not_requeued(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.request_cancel(job.seq, 1, by="bob")
        ended = some(await ledger.finish(end_of(job, RunEvent.REQUEUE, not_before_us=clock.now_us() + 1)))
        assert (ended.state, ended.not_before_us) == (RunState.CANCELLED, 0)
        assert (await kinds(ledger, job.seq))[-1] is EventKind.CANCELLED

    @scenario
    async def test_a_result_that_comes_before_the_cancellation_counts(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.request_cancel(job.seq, 1, by="bob")
        assert some(await ledger.finish(end_of(job))).state is RunState.SUCCEEDED
        assert await ledger.request_cancel(job.seq, 1, by="bob") is None

    @scenario
    async def test_cancel_of_another_run_is_refused(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        assert await ledger.request_cancel(job.seq, 2, by="bob") is None
        assert await ledger.request_cancel(job.seq + 1000, 1, by="bob") is None
        assert await ledger.get("job-a") == job

    @scenario
    async def test_expire_at_the_deadline_and_not_before(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(deadline_us=clock.now_us() + SECOND_US))).job
        none = (await ledger.accept(request("none"))).job
        clock.jump(1 - 1e-6)
        assert await ledger.expire(job.seq, 1) is None
        clock.jump(1e-6)
        assert await ledger.expire(job.seq, 2) is None
        assert await ledger.expire(job.seq + 1000, 1) is None
        gone = some(await ledger.expire(job.seq, 1))
        assert (gone.state, gone.finished_us) == (RunState.EXPIRED, clock.now_us())
        assert await ledger.get("job-a") == gone
        assert await ledger.expire(job.seq, 1) is None
        assert await ledger.expire(none.seq, 1) is None
        assert await kinds(ledger, job.seq) == [EventKind.ACCEPTED, EventKind.EXPIRED]
        running = (await ledger.accept(request("r", deadline_us=clock.now_us()), claim_for="agent")).job
        assert await ledger.expire(running.seq, 1) is None

    # ------------------------------------------------------------------ reads

    @scenario
    async def test_what_is_not_there_is_not_found(self, ledger: Ledger, clock: ManualClock) -> None:
        assert await ledger.get("nobody") is None
        assert await ledger.get_result(1, 1) is None
        assert await ledger.attempts(1) == []
        assert await ledger.events(1) == []
        assert await ledger.unfinished() == []
        assert await ledger.counts() == {"queued": 0, "running": 0}
        page = await ledger.list_jobs(JobFilter(tenant="default"))
        assert (page.jobs, page.next_before_seq) == ([], None)

    @scenario
    async def test_events_resume_after_an_id(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.accept(request("other"), claim_for="agent")
        await ledger.finish(end_of(job))
        events = await ledger.events(job.seq)
        ids = [event.event_id for event in events]
        assert ids == sorted(set(ids))
        assert await ledger.events(job.seq, after=ids[0]) == events[1:]
        assert await ledger.events(job.seq, after=ids[-1]) == []
        assert await ledger.events(job.seq, limit=2) == events[:2]

    @scenario
    async def test_unfinished_and_counts(self, ledger: Ledger, clock: ManualClock) -> None:
        for n in range(12):
            job = (await ledger.accept(request(f"j{n}", tenant=f"t{n % 3}"), claim_for="agent" if n % 2 else None)).job
            if n % 4 == 1:
                await ledger.finish(end_of(job))
        expected = ["j0", "j2", "j3", "j4", "j6", "j7", "j8", "j10", "j11"]
        assert [job.job_id for job in await ledger.unfinished()] == expected
        found: list[JobRecord] = []
        while page := await ledger.unfinished(after_seq=found[-1].seq if found else 0, limit=2):
            found += page
        assert [job.job_id for job in found] == expected
        assert found[0] == await ledger.get("j0")
        assert await ledger.counts() == {"queued": 6, "running": 3}

    async def _populate(self, ledger: Ledger, clock: ManualClock) -> list[JobRecord]:
        for n in range(60):
            new = request(f"j{n}", tenant="other" if n % 10 == 9 else "default", service="math" if n % 4 == 0 else "flights",
                          endpoint=f"e{n % 3}", user=f"u{n % 5}", tags=("even",) if n % 2 == 0 else ("odd", f"t{n % 7}"))
            job = (await ledger.accept(new, claim_for="agent" if n % 3 else None)).job
            if n % 3 == 1:
                await ledger.finish(end_of(job, RunEvent.FAIL if n % 2 else RunEvent.SUCCEED))
            clock.advance(1)
        return [some(await ledger.get(f"j{n}")) for n in range(60)]

    @scenario
    async def test_listing_by_each_filter_and_all_pairs(self, ledger: Ledger, clock: ManualClock) -> None:
        begin = clock.now_us()
        jobs = await self._populate(ledger, clock)
        conditions: list[tuple[dict[str, Any], Callable[[JobRecord], bool]]] = [
            ({}, lambda _: True),
            ({"state": RunState.FAILED}, lambda job: job.state is RunState.FAILED),
            ({"state": RunState.QUEUED}, lambda job: job.state is RunState.QUEUED),
            ({"service": "flights"}, lambda job: job.service == "flights"),
            ({"service": "flights", "endpoint": "e1"}, lambda job: (job.service, job.endpoint) == ("flights", "e1")),
            ({"user": "u2"}, lambda job: job.user == "u2"),
            ({"tag": "odd"}, lambda job: "odd" in job.tags),
            ({"tag": "t3"}, lambda job: "t3" in job.tags),
            ({"created_after_us": begin + 20 * SECOND_US}, lambda job: job.created_us >= begin + 20 * SECOND_US),
            ({"created_before_us": begin + 40 * SECOND_US}, lambda job: job.created_us < begin + 40 * SECOND_US),
            ({"user": "nobody"}, lambda _: False),
        ]
        for one, fits_one in conditions:
            for two, fits_two in conditions:
                where = JobFilter(tenant="default", **(one | two)) if not (one.keys() & two.keys()) else None
                if where is None:
                    continue
                expected = [job.job_id for job in reversed(jobs)
                            if job.tenant == "default" and fits_one(job) and fits_two(job)]
                assert await listed(ledger, where) == expected, where
                assert await listed(ledger, where, limit=7) == expected, where
        page = await ledger.list_jobs(JobFilter(tenant="other"), limit=3)
        assert page.jobs == [jobs[59], jobs[49], jobs[39]]

    @scenario
    async def test_listing_by_time_when_the_clock_went_back(self, ledger: Ledger, clock: ManualClock) -> None:
        times = {}
        for n, step in enumerate([1, 1, 1, -100, 1, 1, 500, 1, -300, 1, 1]):
            clock.jump(step)
            times[f"j{n}"] = (await ledger.accept(request(f"j{n}"))).job.created_us
        for begin in sorted(times.values()):
            for end in [*sorted(times.values()), None]:
                where = JobFilter(tenant="default", created_after_us=begin, created_before_us=end)
                expected = [name for name in reversed(times) if begin <= times[name] and (end is None or times[name] < end)]
                assert await listed(ledger, where, limit=3) == expected

    @scenario
    async def test_a_cursor_is_steady_while_jobs_come(self, ledger: Ledger, clock: ManualClock) -> None:
        for n in range(10):
            await ledger.accept(request(f"j{n}"))
        first = await ledger.list_jobs(JobFilter(tenant="default"), limit=4)
        await ledger.accept(request("late"))
        rest = await ledger.list_jobs(JobFilter(tenant="default"), before_seq=first.next_before_seq, limit=50)
        assert [job.job_id for job in [*first.jobs, *rest.jobs]] == [f"j{n}" for n in reversed(range(10))]
        assert rest.next_before_seq is None

    # ------------------------------------------------------------------ retention

    async def _stored(self, ledger: Ledger, name: str, location: str | None) -> JobRecord:
        job = (await ledger.accept(request(name), claim_for="agent")).job
        given = result() if location is None else StoredResult(media_type="x/y", digest="d", size=1, location=location)
        return some(await ledger.finish(end_of(job, result=given)))

    @scenario
    async def test_expired_results_are_forgotten_and_their_locations_told_until_deleted(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        early = await self._stored(ledger, "a", "loc-a")
        inline = await self._stored(ledger, "b", None)
        clock.advance(10)
        late = await self._stored(ledger, "c", "loc-c")
        clock.advance(3590 - 1e-6)
        assert await ledger.purge_results() == []
        assert await ledger.get_result(early.seq, 1) is not None
        clock.advance(1e-6)
        assert await ledger.purge_results() == ["loc-a"]
        assert await ledger.purge_results() == ["loc-a"]
        assert await ledger.get_result(early.seq, 1) is None
        assert await ledger.get_result(inline.seq, 1) is None
        assert await ledger.get_result(late.seq, 1) is not None
        forgotten = some(await ledger.get("a"))
        assert (forgotten.state, forgotten.result_run, forgotten.result_expires_us) == (RunState.SUCCEEDED, None, None)
        await ledger.forget_locations(["loc-a", "unknown"])
        assert await ledger.purge_results() == []
        assert some(await ledger.get("c")).result_run == 1

    @scenario
    async def test_a_purge_is_limited(self, ledger: Ledger, clock: ManualClock) -> None:
        for n in range(5):
            await self._stored(ledger, f"j{n}", f"loc-{n}")
        clock.advance(3600)
        assert len(await ledger.purge_results(limit=2)) == 2
        assert len(await ledger.purge_results(limit=2)) == 4
        assert len(await ledger.purge_results(limit=500)) == 5
        clock.advance(1)
        assert await ledger.purge_jobs(finished_before_us=clock.now_us(), limit=2) == 2
        assert await ledger.purge_jobs(finished_before_us=clock.now_us(), limit=500) == 3
        assert await ledger.purge_jobs(finished_before_us=clock.now_us()) == 0

    @scenario
    async def test_ended_jobs_without_result_are_deleted_wholly(self, ledger: Ledger, clock: ManualClock) -> None:
        failed = (await ledger.accept(request("failed", tags=("t",), params=b"z" * 5000), claim_for="agent")).job
        await ledger.finish(end_of(failed, RunEvent.FAIL))
        await ledger.reopen(failed.seq, by="bob")
        await ledger.request_cancel(failed.seq, 2, by="bob")
        kept = await self._stored(ledger, "kept", None)
        queued = (await ledger.accept(request("queued"))).job
        clock.advance(1)
        young = (await ledger.accept(request("young"))).job
        await ledger.request_cancel(young.seq, 1, by="bob")
        assert await ledger.purge_jobs(finished_before_us=clock.now_us()) == 1
        assert await ledger.get("failed") is None
        assert await ledger.events(failed.seq) == []
        assert await ledger.attempts(failed.seq) == []
        assert await listed(ledger, JobFilter(tenant="default", tag="t")) == []
        for job in (kept, queued, young):
            assert await ledger.get(job.job_id) is not None
        assert await ledger.finish(end_of(failed)) is None
        again = await ledger.accept(request("failed"))
        assert (again.opened, again.job.run) == (True, 1)
        assert again.job.seq > young.seq

    @scenario
    async def test_the_handle_of_a_purged_job_is_not_given_again(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        await ledger.request_cancel(job.seq, 1, by="ada")
        assert await ledger.purge_jobs(finished_before_us=clock.now_us() + 1) == 1
        again = await self.reopened(ledger, clock)
        try:
            assert (await again.accept(request())).job.seq > job.seq
        finally:
            await again.close()

    @scenario
    async def test_an_idempotency_key_of_a_purged_job_stands_for_nothing(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        job = (await ledger.accept(request("a", idempotency_key="k", request_digest=b"1"))).job
        await ledger.request_cancel(job.seq, 1, by="ada")
        await ledger.purge_jobs(finished_before_us=clock.now_us() + 1)
        assert (await ledger.accept(request("b", idempotency_key="k", request_digest=b"2"))).opened

    # ------------------------------------------------------------------ tokens

    @scenario
    async def test_tokens(self, ledger: Ledger, clock: ManualClock) -> None:
        assert await ledger.tokens() == []
        one = TokenRecord(token_id="t1", digest=b"\x00" * 32, user="ada", tenant="default",  # noqa: S106 - an id
                          scopes=frozenset({"jobs", "agent"}), created_us=5)
        two = TokenRecord(token_id="t2", digest=b"\xff" * 32, user="bob", tenant="default",  # noqa: S106 - an id
                          scopes=frozenset(), created_us=6, expires_us=9)
        await ledger.put_token(one)
        await ledger.put_token(two)
        revoked = TokenRecord(token_id="t1", digest=one.digest, user="ada", tenant="default",  # noqa: S106 - an id
                              scopes=one.scopes, created_us=5, revoked_us=7)
        await ledger.put_token(revoked)
        assert sorted(await ledger.tokens(), key=lambda token: token.token_id) == [revoked, two]
