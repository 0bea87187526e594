"""How requests become jobs and runs: life, accept, reopen."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from dask_fleet.model.errors import Conflict, IdempotencyMismatch, InvalidTransition, LedgerUnavailable, NotFound
from dask_fleet.model.jobs import JobFilter, Policy, StoredResult
from dask_fleet.model.states import AttemptState, EventKind, OpenReason, RunEvent, RunState
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import (
    HOUR_US,
    LedgerMaker,
    ManualClock,
    end_of,
    kinds,
    listed,
    request,
    result,
    scenario,
    some,
)


class RequestScenarios(LedgerMaker):
    """How requests become jobs and runs: life, accept, reopen."""

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
