"""Queued runs get free slots: in order, at their time, and never twice."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from tests.unit.controller.rig import Rig, outcome, run

from dask_fleet.controller.agents import AgentHandle
from dask_fleet.controller.fair_queue import Lane
from dask_fleet.model.errors import Draining, LedgerUnavailable, QueueFull
from dask_fleet.model.failure import Cause
from dask_fleet.model.jobs import Accepted, JobRecord, NewRun
from dask_fleet.model.states import AttemptState, RunState


@run
async def test_with_a_free_slot_a_call_is_claimed_as_it_is_accepted() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        assert (job.state, job.attempt, side.attempts()) == (RunState.RUNNING, 1, [(job.seq, 1)])


@run
async def test_no_more_attempts_than_slots() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=2)
        jobs = [await rig.submit(str(number)) for number in range(5)]
        assert len(side.attempts()) == 2
        for done, job in enumerate(jobs[:3], start=1):
            await rig.advance(1.0)
            await side.deliver(outcome(job))
            assert len(side.attempts()) == 2 + done
            assert side.handle.free == 0
        assert [seq for seq, _ in side.attempts()] == [job.seq for job in jobs]


@run
async def test_short_jobs_are_given_ahead_and_come_back_when_a_long_one_holds_the_slot() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=1)
        jobs = [await rig.submit(str(number)) for number in range(9)]
        await rig.advance(0.0039)
        await side.deliver(outcome(jobs[0]))
        assert [seq for seq, _ in side.attempts()] == [job.seq for job in jobs[:7]]  # one on the slot, five ahead
        back = [outcome(job, AttemptState.CANCELLED) for job in jobs[2:7]]
        await side.deliver(*back)
        assert len(side.attempts()) == 7
        for job in jobs[2:7]:
            now = await rig.job(job)
            assert (now.state, now.faults, now.exceptions) == (RunState.QUEUED, 0, 0)


@run
async def test_a_slot_that_is_gone_on_the_second_look_loses_no_job() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=1)
        first, second = await rig.submit("first"), await rig.submit("second")
        choose, looks = rig.controller.agents.choose, 0

        def choose_once(lane: Lane) -> AgentHandle | None:
            nonlocal looks
            looks += 1
            return choose(lane) if looks % 2 else None

        rig.controller.agents.choose = choose_once  # type: ignore[method-assign]
        await side.deliver(outcome(first))
        assert (second.seq, 1) in side.attempts()


@run
async def test_what_a_lost_cluster_interrupted_does_not_wait_behind_the_thousand_that_came_later() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=1)
        first, second, _ = [await rig.submit(str(number)) for number in range(3)]
        await rig.advance(1.0)  # they take so long that nothing is given ahead
        await side.deliver(outcome(first, AttemptState.FAILED, cause=Cause.CLUSTER_LOST))
        await rig.advance(1.0)
        await side.deliver(outcome(second))
        assert side.attempts() == [(first.seq, 1), (second.seq, 1), (first.seq, 2)]


@run
async def test_nothing_is_given_ahead_behind_a_job_that_already_takes_long() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=1)
        short = await rig.submit("short")
        await rig.advance(0.001)
        await side.deliver(outcome(short))
        assert side.handle.window.ahead > 0
        await rig.submit("long")
        await rig.advance(0.5)
        assert (await rig.submit("late")).state is RunState.QUEUED


@run
async def test_a_new_call_does_not_pass_those_that_wait() -> None:
    async with Rig() as rig:
        first = await rig.submit("first")
        side = rig.agent(ready=False)
        second = await rig.submit("second")
        assert second.state is RunState.QUEUED
        side.ready()
        await rig.settle()
        assert side.attempts() == [(first.seq, 1)]


@run
async def test_priority_first_then_users_in_turn() -> None:
    async with Rig() as rig:
        for number in range(2):
            await rig.submit(f"ada {number}", user="ada")
        await rig.submit("bob", user="bob")
        await rig.submit("urgent", user="ada", priority=5)
        side = rig.agent(slots=4)
        await rig.settle()
        assert [seq for seq, _ in side.attempts()] == [4, 3, 1, 2]  # ada has just had a turn


@run
async def test_the_agent_with_most_free_slots_gets_it() -> None:
    async with Rig() as rig:
        small, large = rig.agent("small-a", slots=1), rig.agent("large-a", slots=3)
        for number in range(3):
            await rig.submit(str(number))
        assert (len(small.attempts()), len(large.attempts())) in {(0, 3), (1, 2)}
        await rig.submit("last")
        assert (len(small.attempts()), len(large.attempts())) == (1, 3)


@run
async def test_a_retry_waits_for_its_back_off() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit(policy={"retries": 1})
        await side.deliver(outcome(job, AttemptState.FAILED, cause=Cause.EXCEPTION))
        waiting = await rig.job(job)
        assert waiting.state is RunState.QUEUED
        assert 0.5 <= (waiting.not_before_us - rig.clock.now_us()) / 1e6 <= 1.0
        assert "back-off" in (rig.controller.waiting_for(waiting) or "")
        await rig.advance((waiting.not_before_us - rig.clock.now_us()) / 1e6 - 0.001)
        assert len(side.attempts()) == 1
        await rig.advance(0.0039)
        assert side.attempts() == [(job.seq, 1), (job.seq, 2)]
        await side.deliver(outcome(job, AttemptState.FAILED, attempt=2, cause=Cause.EXCEPTION))
        assert (await rig.job(job)).state is RunState.FAILED


@run
async def test_a_deadline_ends_what_still_waits() -> None:
    async with Rig() as rig:
        job = await rig.submit(deadline_us=rig.clock.now_us() + 2_000_000)
        await rig.advance(1.999)
        assert (await rig.job(job)).state is RunState.QUEUED
        await rig.advance(0.0039)
        assert (await rig.job(job)).state is RunState.EXPIRED
        side = rig.agent()
        await rig.settle()
        assert side.attempts() == []


@run
async def test_a_deadline_does_not_end_what_runs() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit(deadline_us=rig.clock.now_us() + 2_000_000)
        await rig.advance(5)
        await side.deliver(outcome(job))
        assert (await rig.job(job)).state is RunState.SUCCEEDED


@run
async def test_a_cancelled_run_is_not_started() -> None:
    async with Rig() as rig:
        one, two = await rig.submit("one"), await rig.submit("two")
        cancelled = await rig.controller.cancel(one, "bob")
        assert (cancelled.state, cancelled.cancel_requested_by) == (RunState.CANCELLED, "bob")
        side = rig.agent(slots=2)
        await rig.settle()
        assert side.attempts() == [(two.seq, 1)]


@run
async def test_the_slot_of_a_refused_claim_is_given_back() -> None:
    async with Rig() as rig:
        one = await rig.submit("one")
        await rig.ledger.request_cancel(one.seq, 1, by="bob")  # behind the dispatcher's back
        side = rig.agent()
        await rig.settle()
        assert (side.attempts(), side.handle.free) == ([], 1)


@run
async def test_a_claim_waits_for_a_ledger_that_cannot_be_written() -> None:
    async with Rig() as rig:
        job = await rig.submit()
        claim = rig.ledger.claim
        refused = 0

        async def full(seq: int, run: int, *, agent: str) -> JobRecord | None:
            nonlocal refused
            if refused == 0:
                refused += 1
                raise LedgerUnavailable("the disk is full")
            return await claim(seq, run, agent=agent)

        rig.ledger.claim = full  # type: ignore[method-assign]
        side = rig.agent()
        await rig.settle()
        assert (side.attempts(), side.handle.free) == ([], 1)
        await rig.advance(0.5)
        assert side.attempts() == [(job.seq, 1)]


@run
async def test_the_slot_of_a_call_that_could_not_be_accepted_is_given_back() -> None:
    async with Rig() as rig:
        side = rig.agent()
        accept = rig.ledger.accept

        async def full(new: NewRun, *, claim_for: str | None = None) -> Accepted:
            raise LedgerUnavailable("the disk is full")

        rig.ledger.accept = full  # type: ignore[method-assign]
        with pytest.raises(LedgerUnavailable):
            await rig.submit()
        rig.ledger.accept = accept  # type: ignore[method-assign]
        assert side.handle.free == 1
        assert (await rig.submit()).state is RunState.RUNNING


@run
async def test_equal_calls_at_once_are_one_write_and_one_start() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=5)
        writes = 0
        accept = rig.ledger.accept

        async def slow(new: NewRun, *, claim_for: str | None = None) -> Accepted:
            nonlocal writes
            writes += 1
            await rig.settle()
            return await accept(new, claim_for=claim_for)

        rig.ledger.accept = slow  # type: ignore[method-assign]
        jobs = await asyncio.gather(*(rig.submit() for _ in range(100)))
        assert ({job.seq for job in jobs}, writes) == ({1}, 1)
        assert side.attempts() == [(1, 1)]


@run
async def test_a_caller_that_goes_away_leaves_a_whole_job() -> None:
    async with Rig() as rig:
        side = rig.agent()
        caller = asyncio.create_task(rig.submit(), name="caller")
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await rig.settle()
        assert side.attempts() == [(1, 1)]


@run
async def test_a_caller_that_goes_away_in_the_middle_of_the_write_leaves_a_whole_job() -> None:
    async with Rig() as rig:
        side = rig.agent()
        accept, written, hold = rig.ledger.accept, [], asyncio.Event()

        async def slow(new: NewRun, *, claim_for: str | None = None) -> Accepted:
            written.append(await accept(new, claim_for=claim_for))  # durable, though nobody hears of it
            await hold.wait()
            return written[-1]

        rig.ledger.accept = slow  # type: ignore[method-assign]
        caller = asyncio.create_task(rig.submit(), name="caller")
        await rig.settle()
        other = asyncio.create_task(rig.submit(), name="the same request")
        await rig.settle()
        caller.cancel()
        hold.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        with pytest.raises(Draining):
            await other
        await rig.settle()
        assert side.attempts() == [(1, 1)]
        assert side.handle.reserved == 0
        await side.deliver(outcome(written[0].job))
        assert (await rig.submit()).state is RunState.SUCCEEDED


@run
async def test_past_its_limit_the_queue_refuses_and_stores_nothing() -> None:
    async with Rig(max_queued=1) as rig:
        await rig.submit("one")
        with pytest.raises(QueueFull) as caught:
            await rig.submit("two")
        assert caught.value.retry_after_s
        assert (await rig.ledger.counts())["queued"] == 1
        assert (await rig.submit("one")).seq == 1  # known: it joins


@run
async def test_past_its_limit_the_queue_refuses_no_job_that_has_its_result() -> None:
    async with Rig(max_queued=1) as rig:
        side = rig.agent()
        done = await rig.submit("done")
        await side.deliver(outcome(done))
        rig.controller.recent.drop(done.job_id)
        side.drop()
        await rig.submit("queued")
        assert (await rig.submit("done")).state is RunState.SUCCEEDED
        with pytest.raises(QueueFull):
            await rig.submit("done", refresh=True)


@run
async def test_draining_starts_nothing_and_takes_nothing() -> None:
    async with Rig() as rig:
        side = rig.agent()
        running, queued = await rig.submit("one"), await rig.submit("two")
        drain = asyncio.create_task(rig.controller.drain(30), name="drain")
        await rig.settle()
        with pytest.raises(Draining):
            await rig.submit("three")
        assert "shutting down" in (rig.controller.waiting_for(queued) or "")
        assert not drain.done()
        await side.deliver(outcome(running))
        await drain
        assert side.attempts() == [(running.seq, 1)]
        assert (await rig.job(queued)).state is RunState.QUEUED


@run
async def test_a_drain_ends_with_the_last_attempt_in_whatever_order_and_way_they_end() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=3)
        first, second = await rig.submit("one"), await rig.submit("two")
        retried = await rig.submit("three", policy={"retries": 1})
        drain = asyncio.create_task(rig.controller.drain(30), name="drain")
        await rig.settle()
        await side.deliver(outcome(second))
        await side.deliver(outcome(retried, AttemptState.FAILED, cause=Cause.EXCEPTION))
        assert not drain.done()
        await side.deliver(outcome(first))
        async with asyncio.timeout(1):
            await drain
        assert (await rig.job(retried)).state is RunState.QUEUED  # for the next server


@run
async def test_a_waiting_run_says_what_for() -> None:
    async with Rig() as rig:
        job = await rig.submit("one")
        assert rig.controller.waiting_for(job) == "an agent: none is connected"
        side = rig.agent(ready=False)
        assert "workers are starting" in (rig.controller.waiting_for(job) or "")
        side.ready("v0")
        assert "the agents have v0" in (rig.controller.waiting_for(job) or "")
        side.ready()
        await rig.settle()
        other = await rig.submit("two")
        assert rig.controller.waiting_for(other) == "a slot: all 1 are busy"
        assert rig.controller.waiting_for(await rig.job(job)) is None


@run
async def test_every_unfinished_job_is_taken_up_at_start() -> None:
    first = Rig()
    async with first as rig:
        for number in range(3):
            await rig.submit(str(number))
        late = await rig.submit("deadline", deadline_us=rig.clock.now_us() + 1_000_000)
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        await rig.advance(2)
        assert (await rig.job(late)).state is RunState.EXPIRED
        side = rig.agent(slots=5)
        await rig.settle()
        assert side.attempts() == [(1, 1), (2, 1), (3, 1)]


@run
async def test_what_comes_after_its_deadline_never_begins_also_where_a_slot_is_free() -> None:
    async with Rig() as rig:
        side = rig.agent()
        late = await rig.submit("late", deadline_us=rig.clock.us)
        assert (await rig.job(late)).state is RunState.EXPIRED

        running = await rig.submit("running")
        waits = await rig.submit("waits", deadline_us=rig.clock.us + 1_000_000)
        rig.clock.us += 1_000_000  # its alarm has not rung yet
        await side.deliver(outcome(running))
        assert (await rig.job(waits)).state is RunState.EXPIRED
        assert side.attempts() == [(running.seq, 1)]
        assert not rig.controller.status()["queued"]


@run
async def test_a_deadline_to_come_keeps_nothing_of_a_job_that_has_ended() -> None:
    async with Rig() as rig:
        job = await rig.submit(deadline_us=rig.clock.us + 86_400_000_000)
        await rig.controller.cancel(job, "ada")
        kept = [action.args for _, _, action in rig.controller._alarms._by_date if isinstance(action, partial)]
        assert kept == [(job.seq, job.run)]
