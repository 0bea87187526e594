"""How attempts begin and end, and how runs end without one: claim, finish, cancel, expire."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

import asyncio

import pytest

from dask_fleet.model.errors import InvalidTransition
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.states import AttemptState, EventKind, RunEvent, RunState
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import (
    HOUR_US,
    SECOND_US,
    LedgerMaker,
    ManualClock,
    end_of,
    kinds,
    request,
    result,
    scenario,
    some,
)


class AttemptScenarios(LedgerMaker):
    """How attempts begin and end, and how runs end without one: claim, finish, cancel, expire."""

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
