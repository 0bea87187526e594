"""Clusters of jobs: asked for by an attempt, ended with it."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.controller.clusters.hosts import Host, one_host, work
from tests.unit.controller.rig import Rig, outcome, run

from dask_fleet.controller.clusters import for_jobs
from dask_fleet.model.clusters import ClusterKind, ClusterRecord, NewCluster
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.cluster_frames import GrantSlots, JobCluster, NeedCluster


@run
async def test_an_attempt_gets_its_cluster_once_and_it_ends_with_the_attempt() -> None:
    async with one_host(slots=6, nworkers=3) as (rig, host, clusters):
        job = await rig.submit("a")
        ask = NeedCluster(job.seq, job.run, 1, b"csr", tasks=100, width=3)
        host.say(ask, ask)
        await work(rig, host)
        (answer,) = host.got(JobCluster)
        assert (answer.seq, answer.attempt, answer.certificate, answer.why) == (job.seq, 1, b"signed csr", "")
        (record,) = await clusters.list("default")
        assert (record.kind, record.cluster_id, record.address) == (ClusterKind.JOB, answer.cluster, answer.address)
        assert record.spec.n_workers == 3
        assert [grant.fresh for grant in host.got(GrantSlots)] == [False] * 3
        host.say(ask)
        await work(rig, host)
        assert host.got(JobCluster) == [answer, answer]
        host.say(outcome(job))
        await work(rig, host)
        assert await clusters.list("default") == []
        assert (host.workers, host.schedulers) == ({}, set())


@run
async def test_what_can_never_be_had_is_told_at_once() -> None:
    async with one_host(slots=4, nworkers=2) as (rig, host, _):
        job = await rig.submit("a")
        host.say(NeedCluster(job.seq, job.run, 1, b"csr", n_workers=9))
        await work(rig, host)
        (answer,) = host.got(JobCluster)
        assert answer.address == ""
        assert "needs 9 workers of 1 threads; pool 'default' has room for 4" in answer.why
        host.say(NeedCluster(job.seq, job.run, 1, b"csr", n_workers=0))
        host.say(NeedCluster(job.seq, job.run, 7, b"csr", n_workers=1))
        await work(rig, host)
        assert "at least one worker" in host.got(JobCluster)[-1].why
        assert len(host.got(JobCluster)) == 2, "nobody asked for attempt 7"
        assert await rig.controller.clusters.list("default", living=False) == []


@run
async def test_threads_that_no_shared_process_has_take_a_process_of_their_own() -> None:
    async with one_host(slots=4, nworkers=4) as (rig, host, _):
        job = await rig.submit("a")
        host.say(NeedCluster(job.seq, job.run, 1, b"csr", n_workers=1, threads_per_worker=2))
        await work(rig, host)
        assert [grant.fresh for grant in host.got(GrantSlots)] == [True]


@run
async def test_only_the_attempt_whose_scheduler_is_lost_hears_of_it_and_asks_anew() -> None:
    async with one_host(slots=8, nworkers=4) as (rig, host, clusters):
        jobs = [await rig.submit(name) for name in "ab"]
        host.say(*(NeedCluster(job.seq, job.run, 1, b"csr", n_workers=1) for job in jobs))
        await work(rig, host)
        first = next(answer for answer in host.got(JobCluster) if answer.seq == jobs[0].seq)
        host.end_scheduler(first.cluster, 1, "killed by SIGKILL")
        await work(rig, host)
        told = host.got(JobCluster)[2:]
        assert [(answer.seq, answer.cluster, answer.address) for answer in told] == [(jobs[0].seq, first.cluster, "")]
        assert "its scheduler was lost: killed by SIGKILL" in told[0].why
        assert [record.seq for record in await clusters.list("default")] == [jobs[1].seq]
        host.say(outcome(jobs[0], AttemptState.LOST))
        await work(rig, host)
        await rig.advance(60)
        again = await rig.job(jobs[0])
        assert again.attempt == 2
        host.say(NeedCluster(again.seq, again.run, 2, b"csr2", n_workers=1))
        await work(rig, host)
        answer = host.got(JobCluster)[-1]
        assert (answer.attempt, answer.certificate) == (2, b"signed csr2")
        assert answer.cluster != first.cluster


@run
async def test_a_cluster_whose_attempt_went_away_unheard_is_closed() -> None:
    async with Rig() as rig:
        host = Host(rig, "one-a", slots=2, nworkers=2).connect()
        job = await rig.submit("a")
        other = Host(rig, "two-a", slots=2, nworkers=2).connect()
        host.slots = 1
        host.say(NeedCluster(job.seq, job.run, 1, b"csr", n_workers=2))
        await work(rig, host, other)
        assert len(await rig.controller.clusters.list("default")) == 1
        host.disconnect()
        await rig.advance(25)
        await work(rig, other)
        await rig.advance(2)
        await work(rig, other)
        assert await rig.controller.clusters.list("default") == []
        assert other.workers == {}


@run
async def test_a_full_disk_postpones_a_jobs_cluster() -> None:
    """It can wait, and so can the job: nothing has failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(for_jobs, "_AGAIN_S", 0.001)
        await _postpones(patch)


async def _postpones(patch: pytest.MonkeyPatch) -> None:
    async with one_host(slots=4, nworkers=2) as (rig, host, _):
        job = await rig.submit("a")
        create, tries = rig.ledger.create_cluster, 0

        async def refuse(new: NewCluster) -> ClusterRecord:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise LedgerUnavailable("the disk is full")
            return await create(new)

        patch.setattr(rig.ledger, "create_cluster", refuse)
        host.say(NeedCluster(job.seq, job.run, 1, b"csr", width=2))
        async with asyncio.timeout(30):
            while not host.got(JobCluster):
                await work(rig, host)
        (answer,) = host.got(JobCluster)
        assert (answer.address != "", tries) == (True, 3)
