"""Who waits for a cluster's workers waits for those it can have now, and for no others."""

from __future__ import annotations

import asyncio

from tests.unit.controller.clusters.hosts import new, one_host, work
from tests.unit.controller.rig import run

from dask_fleet.controller.clusters.manager import Clusters
from dask_fleet.model.clusters import ClusterRecord, ClusterState


def complete(clusters: Clusters, record: ClusterRecord) -> asyncio.Task[ClusterRecord]:
    return asyncio.create_task(clusters.wait(record.cluster_id, 1000, workers=True), name="complete")


@run
async def test_it_is_complete_when_those_that_got_slots_have_joined() -> None:
    async with one_host(slots=4) as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new(n_workers=6))
        waits = complete(clusters, record)
        await work(rig, host)
        up = await clusters.wait(record.cluster_id, 1000)
        assert up.state is ClusterState.RUNNING
        view = clusters.status(up)
        assert (view.workers, view.joining, view.wanted) == (0, 4, 6)
        assert not waits.done()
        host.joins = True
        host.join()
        await work(rig, host)
        assert (await waits).state is ClusterState.RUNNING
        assert (clusters.status(up).workers, clusters.status(up).joining) == (4, 0)


@run
async def test_a_scheduler_alone_is_complete_at_once() -> None:
    async with one_host() as (rig, host, clusters):
        waits = complete(clusters, await clusters.create(new(n_workers=0)))
        await work(rig, host)
        assert (await waits).state is ClusterState.RUNNING


@run
async def test_one_that_is_closed_while_its_workers_join_is_waited_for_no_longer() -> None:
    async with one_host() as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new())
        waits = complete(clusters, record)
        await work(rig, host)
        assert not waits.done()
        await clusters.close(record.cluster_id, "enough")
        await work(rig, host)
        assert (await waits).reason == "enough"


@run
async def test_workers_that_cannot_start_are_told_of_and_end_the_waiting() -> None:
    async with one_host() as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new(n_workers=1))
        waits = complete(clusters, record)
        await work(rig, host)
        host.lose_worker(next(iter(host.workers)), "no module named 'nothing'", failed=True)
        await work(rig, host)
        waiting_for = clusters.status(record).waiting_for
        assert waiting_for == "1 worker to be started again, the last one could not: no module named 'nothing'"
        for _ in range(20):
            await rig.advance(10)
            await work(rig, host)
            for lease in list(host.workers):
                host.lose_worker(lease, "no module named 'nothing'", failed=True)
            await work(rig, host)
        ended = await waits
        assert ended.state in {ClusterState.CLOSING, ClusterState.CLOSED}
        assert ended.reason == "its workers cannot start: no module named 'nothing'"
