"""A thousand jumps of the wall clock: no lease is lost or held by one, nothing waits for one, nothing is started twice."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.unit.controller.rig import Rig, Side, outcome, run

from dask_fleet.model.failure import Cause
from dask_fleet.model.jobs import LONGEST_BACKOFF_S, JobRecord
from dask_fleet.model.leases import LEASE_S, RENEW_S, LeaseState
from dask_fleet.model.states import AttemptState, RunState
from dask_fleet.protocol.frames import Start

JUMPS = 1_000
HOUR_US = 3_600_000_000


class Story:
    """Jobs that raise once or twice and then succeed, while the clock jumps."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.jobs: dict[int, JobRecord] = {}
        self.answered: set[tuple[int, int]] = set()

    def jump(self) -> None:
        self.rig.clock.jumped_us += self.random.randint(-HOUR_US, HOUR_US)

    async def ask(self, number: int) -> None:
        deadline_us = self.rig.clock.now_us() + 60_000_000 if number % 5 == 0 else None
        job = await self.rig.submit(f"job-{number}", policy={"retries": 5}, deadline_us=deadline_us)
        self.jobs[job.seq] = job

    async def answer(self, side: Side) -> None:
        """Answer what the agent was told to run: the first two attempts raise."""
        for start in side.got(Start):
            if (start.seq, start.attempt) not in self.answered:
                self.answered.add((start.seq, start.attempt))
                job = self.jobs[start.seq]
                if start.attempt <= 2:
                    await side.deliver(outcome(job, AttemptState.FAILED, attempt=start.attempt, cause=Cause.EXCEPTION))
                else:
                    await side.deliver(outcome(job, attempt=start.attempt))


@pytest.mark.parametrize("seed", range(4))
def test_jumps_cost_nothing_and_gain_nothing(seed: int) -> None:
    @run
    async def told() -> None:
        async with Rig() as rig:
            story = Story(rig, seed)
            side = rig.agent(slots=4)
            for number in range(JUMPS // 4):
                story.jump()
                if number % 4 == 0:
                    await story.ask(number)
                await rig.advance(story.random.choice([0.1, 0.7, 2.0]))
                await story.answer(side)
            for _ in range(20):  # after so long all back-offs are over, had no clock ever jumped
                await rig.advance(LONGEST_BACKOFF_S / 10)
                await story.answer(side)
            (lease,) = await rig.ledger.leases()
            assert (lease.epoch, lease.state) == (1, LeaseState.HELD)
            starts = Counter((start.seq, start.attempt) for start in side.got(Start))
            assert set(starts.values()) == {1}
            for job in story.jobs.values():
                ended = await rig.job(job)
                if ended.state is RunState.EXPIRED:
                    assert job.deadline_us is not None  # the clock did pass it, for a while
                elif ended.state is RunState.FAILED:
                    assert job.deadline_us is not None  # it was passed before the next attempt could begin
                else:
                    assert (ended.state, ended.attempt) == (RunState.SUCCEEDED, 3)
                events = await rig.ledger.events(job.seq)
                assert len({event.attempt for event in events if event.kind == "started"}) == ended.attempt

    told()


@pytest.mark.parametrize("seed", range(8))
def test_a_silent_agent_lapses_when_it_would_have_without_jumps(seed: int) -> None:
    @run
    async def told() -> None:
        async with Rig() as rig:
            story = Story(rig, seed)
            side = rig.agent()
            await rig.advance(RENEW_S)
            side.drop()
            silent_s = 0.0
            while (await rig.ledger.leases())[0].state is LeaseState.HELD:
                story.jump()
                await rig.advance(0.5)
                silent_s += 0.5
                assert silent_s < 60
            assert LEASE_S - 1 <= silent_s <= LEASE_S + RENEW_S + 1

    told()


@run
async def test_a_back_off_is_not_prolonged_by_a_clock_set_back() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit(policy={"retries": 1})
        await side.deliver(outcome(job, AttemptState.FAILED, cause=Cause.EXCEPTION))
        rig.clock.jumped_us -= 24 * HOUR_US
        await rig.advance(2)
        assert side.attempts() == [(job.seq, 1), (job.seq, 2)]


@run
async def test_nor_after_a_restart() -> None:
    first = Rig()
    async with first as rig:
        side = rig.agent()
        job = await rig.submit(policy={"retries": 1})
        await side.deliver(outcome(job, AttemptState.FAILED, cause=Cause.EXCEPTION))
    first.clock.jumped_us -= 24 * HOUR_US
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        side = rig.agent()
        await rig.advance(LONGEST_BACKOFF_S + 1)
        assert side.attempts() == [(job.seq, 2)]
