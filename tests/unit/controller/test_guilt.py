"""Suspects run alone, killers are paused, and neighbours of both go on."""

from __future__ import annotations

import msgspec
from tests.unit.controller.rig import Rig, Side, outcome, run

from dask_fleet.controller.breaker import PAUSE_S
from dask_fleet.model.failure import Blame, Cause
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.states import AttemptState, RunState
from dask_fleet.protocol.frames import Outcome, Start


def death(job: JobRecord, blame: Blame, *, attempt: int = 1, worker: str = "w", cause: Cause = Cause.WORKER_DIED) -> Outcome:
    return outcome(job, AttemptState.LOST, attempt=attempt, cause=cause, blame=blame, worker=worker)


def alone(side: Side) -> dict[tuple[int, int], bool]:
    return {(frame.seq, frame.attempt): frame.alone for frame in side.got(Start)}


@run
async def test_those_who_died_together_run_alone_and_as_many_as_there_are_processes() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=8, nworkers=2)
        jobs = [await rig.submit(str(n)) for n in range(4)]
        await side.deliver(*[death(job, Blame.SHARED) for job in jobs])
        await rig.advance(1)
        second = {key: is_alone for key, is_alone in alone(side).items() if key[1] == 2}
        assert list(second.values()) == [True, True]
        assert side.handle.free == 0  # each has its whole process
        waiting = next(job for job in jobs if (job.seq, 2) not in second)
        text = rig.controller.waiting_for(await rig.job(waiting))
        assert text is not None
        assert "a worker process for itself" in text
        assert "2 worker processes" in text
        first = next(job for job in jobs if (job.seq, 2) in second)
        await side.deliver(outcome(first, attempt=2))
        assert len([key for key in alone(side) if key[1] == 2]) == 3
        assert (await rig.job(waiting)).deaths == 0


@run
async def test_the_culprit_fails_and_the_innocent_succeed() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=4, nworkers=1)
        jobs = [await rig.submit(str(n)) for n in range(4)]
        culprit = jobs[2]
        await side.deliver(*[death(job, Blame.SHARED) for job in jobs])
        answered: set[tuple[int, int]] = {(job.seq, 1) for job in jobs}
        for _ in range(20):
            await rig.advance(5)
            for key in set(alone(side)) - answered:
                answered.add(key)
                job = next(job for job in jobs if job.seq == key[0])
                if job is culprit:
                    await side.deliver(death(job, Blame.ALONE, attempt=key[1], worker=f"w{key[1]}"))
                else:
                    await side.deliver(outcome(job, attempt=key[1]))
        for job in jobs:
            ended = await rig.job(job)
            if job is culprit:
                assert (ended.state, ended.attempt, ended.deaths) == (RunState.FAILED, 3, 2)
                assert ended.failure is not None
                assert ended.failure.cause is Cause.WORKER_DIED
            else:
                assert (ended.state, ended.attempt) == (RunState.SUCCEEDED, 2)


@run
async def test_a_run_opened_for_a_culprit_begins_alone() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=4, nworkers=1)
        job = await rig.submit()
        await side.deliver(death(job, Blame.ALONE, worker="w1"))
        await rig.advance(5)
        await side.deliver(death(job, Blame.ALONE, attempt=2, worker="w2"))
        assert (await rig.job(job)).state is RunState.FAILED
        again = await rig.submit()
        assert (again.run, again.suspect) == (2, True)
        assert alone(side)[job.seq, 3] is True
        assert side.handle.free == 0
        await side.deliver(Outcome(job.seq, 2, 3, AttemptState.CANCELLED, "", 0))
        await rig.advance(5)
        assert side.handle.reserved == side.handle.reserved_alone == 0


@run
async def test_a_suspect_that_is_adopted_after_a_restart_keeps_its_process() -> None:
    first = Rig()
    async with first as rig:
        side = rig.agent(slots=4, nworkers=1)
        job = await rig.submit()
        await side.deliver(death(job, Blame.SHARED))
        await rig.advance(1)
        assert alone(side)[job.seq, 2]
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        side = rig.agent(slots=4, nworkers=1)
        assert side.handle.free == 0
        assert alone(side)[job.seq, 2]  # its frame was lost on the way


@run
async def test_a_user_whose_jobs_kill_ten_processes_is_paused_and_others_go_on() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=2, nworkers=2)
        kills = 0
        while not (paused := rig.controller.status()["paused"]):
            job = await rig.submit(f"kill-{kills}", user="eve")
            await rig.advance(0.1)
            assert side.attempts()[-1][0] == job.seq
            kills += 1
            await side.deliver(death(job, Blame.ALONE, worker=f"w-{kills}"))
            await rig.controller.cancel(await rig.job(job), "eve")
            assert kills < 20
        assert kills == 10
        assert (paused[0]["user"], "10 worker processes" in paused[0]["why"]) == ("eve", True)
        assert paused[0]["until_us"] == rig.clock.now_us() + int(PAUSE_S * 1e6)
        begun = len(side.attempts())
        theirs = await rig.submit("accepted all the same", user="eve")
        assert theirs.state is RunState.QUEUED
        text = rig.controller.waiting_for(theirs)
        assert text is not None
        assert "pause of its user" in text
        mine = await rig.submit("mine", user="ada")
        assert side.attempts()[begun:] == [(mine.seq, 1)]
        await rig.advance(PAUSE_S - 1)
        assert side.attempts()[begun:] == [(mine.seq, 1)]
        await rig.advance(2)
        assert side.attempts()[begun:] == [(mine.seq, 1), (theirs.seq, 1)]
        assert rig.controller.status()["paused"] == []


@run
async def test_deaths_that_users_share_pause_nobody() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=40, nworkers=1)
        for n in range(15):
            eve, ada = await rig.submit(f"e{n}", user="eve"), await rig.submit(f"a{n}", user="ada")
            await side.deliver(*[death(job, Blame.SHARED, worker=f"w-{n}") for job in (eve, ada)])
            for job in (eve, ada):
                await rig.controller.cancel(await rig.job(job), "eve")
        assert rig.controller.status()["paused"] == []


@run
async def test_processes_that_died_with_their_forkserver_count_as_one() -> None:
    """Else each victim's user would have killed the process in which nothing but the victim was."""
    async with Rig() as rig:
        side = rig.agent(slots=40, nworkers=20)
        for n in range(15):
            eve, ada = await rig.submit(f"e{n}", user="eve"), await rig.submit(f"a{n}", user="ada")
            for number, job in enumerate((eve, ada)):
                shared = death(job, Blame.SHARED, worker=f"w-{n}-{number}")
                await side.deliver(msgspec.structs.replace(shared, died_with=f"forkserver-{n}"))
                assert (await rig.job(job)).suspect
            for job in (eve, ada):
                await rig.controller.cancel(await rig.job(job), "eve")
        assert rig.controller.status()["paused"] == []


@run
async def test_a_user_whose_deaf_jobs_cost_ten_processes_is_paused_and_who_was_beside_them_is_not() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=2, nworkers=1)
        for n in range(12):
            deaf, beside = await rig.submit(f"d{n}", user="eve"), await rig.submit(f"b{n}", user="ada")
            if deaf.state is RunState.QUEUED:
                break
            end = outcome(deaf, AttemptState.FAILED, cause=Cause.TIMEOUT, blame=Blame.ALONE, worker=f"w-{n}")
            await side.deliver(end, death(beside, Blame.NONE, worker=f"w-{n}"))
            await rig.controller.cancel(await rig.job(beside), "ada")
        assert n == 10
        assert [each["user"] for each in rig.controller.status()["paused"]] == ["eve"]


@run
async def test_what_is_hit_twice_by_the_ends_of_others_runs_alone() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=2, nworkers=1)
        job = await rig.submit()
        for attempt in (1, 2):
            assert alone(side)[job.seq, attempt] is False
            await side.deliver(death(job, Blame.NONE, attempt=attempt, worker=f"w{attempt}"))
            await rig.advance(5)
        assert alone(side)[job.seq, 3] is True
        record = await rig.job(job)
        assert (record.deaths, record.faults, record.losses, record.suspect) == (0, 0, 2, True)
        await side.deliver(outcome(job, attempt=3))
        assert (await rig.job(job)).state is RunState.SUCCEEDED
