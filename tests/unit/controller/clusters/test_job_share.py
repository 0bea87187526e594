"""Users' clusters leave jobs some slots, whatever they ask for and however long they stay."""

from __future__ import annotations

import pytest
from tests.unit.controller.clusters.hosts import new, now, one_host, work
from tests.unit.controller.rig import run

from dask_fleet.controller.clusters import placing
from dask_fleet.controller.clusters.capacity import Host as Place
from dask_fleet.controller.clusters.placing import Need, Turns
from dask_fleet.model.clusters import ClusterKind
from dask_fleet.model.errors import ClusterImpossible


@pytest.mark.parametrize(
    ("slots", "share", "kept"),
    [(1, 0.1, 0), (3, 0.9, 0), (4, 0.1, 1), (10, 0.1, 1), (11, 0.1, 2), (100, 0.25, 25), (4, 0.0, 0), (4, 0.99, 3)],
)
def test_how_many_are_kept(slots: int, share: float, kept: int) -> None:
    assert placing.kept_for_jobs(slots, share) == kept


def need(name: str, *, threads: int = 1, missing: int = 9, is_users: bool = True) -> Need:
    return Need(name, ("t", name), "default", threads, missing, 0.0, is_users=is_users)


def test_neither_first_workers_nor_growth_take_them_and_clusters_of_jobs_may() -> None:
    hosts = [Place("a", pool="default", slots=8, nthreads=1, free=8)]
    rooms = {"default": 3}
    first, promise = placing.first_workers([need("one", threads=2), need("two", threads=2)], hosts, Turns(), rooms)
    assert [grant.cluster_id for grant in first] == ["one"]
    assert promise is None, "it waits for the other cluster: slots that jobs give back are of no use to it"
    grown = placing.growth([need("one"), need("job", is_users=False)], hosts, Turns(), rooms)
    assert sorted(grant.cluster_id for grant in grown) == ["job"] * 5 + ["one"]
    assert rooms == {"default": 0}


@run
async def test_a_cluster_of_all_slots_gets_all_but_those_kept_for_jobs() -> None:
    async with one_host(slots=4, job_share=0.1) as (rig, host, clusters):
        record = await clusters.create(new(n_workers=4))
        late = await clusters.create(new("late", n_workers=1, user="eve"))
        await work(rig, host)
        assert clusters.status(record).workers + clusters.status(late).workers == 3
        assert host.side is not None
        assert host.side.handle.free == 1
        waits = clusters.status(await now(clusters, record)).waiting_for
        assert waits is not None
        assert "4 slots of pool 'default', 1 of them kept for jobs" in waits or "4 slots, 1 of them kept for jobs" in waits
        await clusters.close(record.cluster_id, "")
        await work(rig, host)
        assert clusters.status(late).workers == 1
        with pytest.raises(ClusterImpossible, match="job_share"):
            await clusters.create(new("wide", threads_per_worker=4))
        await clusters.create(new("of-a-job", threads_per_worker=4, kind=ClusterKind.JOB, seq=1, attempt=1))
