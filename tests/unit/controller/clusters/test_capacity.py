"""Workers take what they need of an agent: slots for threads or memory, and named resources. Nothing is given out twice."""

from __future__ import annotations

import pytest
from tests.unit.controller.clusters.hosts import Host, new, now, work
from tests.unit.controller.rig import Rig, run

from dask_fleet.controller.clusters.capacity import Host as Place
from dask_fleet.controller.clusters.capacity import Size, declared_names
from dask_fleet.controller.clusters.placing import impossible
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.errors import ClusterImpossible
from dask_fleet.protocol.cluster_frames import GrantSlots

GIB = 1 << 30


def place(*, slots: int = 8, memory_gib: int = 16, **resources: float) -> Place:
    return Place(
        "a", pool="default", slots=slots, nthreads=1, free=slots, memory_bytes=memory_gib * GIB, resources=resources
    )


@pytest.mark.parametrize(
    ("size", "slots"),
    [
        (Size(1), 1), (Size(3), 3),
        (Size(1, GIB), 1), (Size(1, 2 * GIB), 1), (Size(1, 2 * GIB + 1), 2), (Size(1, 16 * GIB), 8), (Size(1, 17 * GIB), 9),
        (Size(4, 4 * GIB), 4),
    ],
)  # fmt: skip
def test_a_worker_takes_the_slots_of_its_threads_or_its_memory(size: Size, slots: int) -> None:
    assert place().slots_for(size) == slots
    assert place(memory_gib=0).slots_for(size) == size.threads, "where nothing limits memory it takes none"


def test_named_resources_are_counted_where_somebody_declares_them() -> None:
    host, plain = place(GPU=2), place()
    names = declared_names([host, plain], "default")
    one = Size(1, 0, (("GPU", 1.0), ("label", 5.0)))
    assert host.fits(one, names)
    assert not plain.fits(one, names)
    assert plain.fits(one, declared_names([plain], "default")), "a label, as Dask has it"
    host.take(one)
    host.take(one)
    assert not host.fits(one, names)
    assert host.could_fit(one, names)
    assert (host.free, host.most(one, names)) == (6, 2)


def test_what_can_never_be_is_said_with_what_there_is() -> None:
    why = str(impossible("default", Size(1, 17 * GIB), [place()]))
    assert "a worker with 17.0 GiB of memory fits on no agent" in why
    assert "16.0 GiB for all its worker processes; ask for a smaller memory_limit" in why
    why = str(impossible("default", Size(1, 0, (("GPU", 3.0),)), [place(GPU=2), place()]))
    assert "GPU=3 fits on no agent of pool 'default': they declare GPU=2; none" in why
    assert impossible("default", Size(1, 0, (("GPU", 3.0),)), [place()]) is None


@run
async def test_memory_and_resources_are_lent_once_over_a_restart_as_well() -> None:
    async with Rig() as rig:
        clusters = rig.controller.clusters
        with_gpus = Host(rig, "local-a", slots=4, nworkers=4, memory_limit=GIB, resources={"GPU": 1.0}).connect()
        big = await clusters.create(new("big", n_workers=2, memory_limit_bytes=2 * GIB))
        await work(rig, with_gpus)
        assert [(grant.threads, grant.slots) for grant in with_gpus.got(GrantSlots)] == [(1, 2), (1, 2)]
        assert with_gpus.side is not None
        assert (with_gpus.side.handle.leased, with_gpus.side.handle.free) == (4, 0)
        gpu = await clusters.create(new("gpu", n_workers=2, resources={"GPU": 1.0}))
        await work(rig, with_gpus)
        assert "each with GPU=1" in str(clusters.status(gpu).waiting_for)
        assert "room for 1 of the 2 workers" in str(clusters.status(gpu).waiting_for)
        with pytest.raises(ClusterImpossible, match="memory"):
            await clusters.create(new("huge", memory_limit_bytes=5 * GIB))
        with pytest.raises(ClusterImpossible, match="GPU=2"):
            await clusters.create(new("gpus", resources={"GPU": 2.0}))
        ledger, clock = rig.ledger, rig.clock
    with_gpus.side = None
    async with Rig(ledger=ledger, clock=clock) as rig:
        clusters = rig.controller.clusters
        with_gpus.rig = rig
        with_gpus.connect()
        await work(rig, with_gpus)
        assert with_gpus.side is not None
        assert with_gpus.side.handle.leased == 4
        await clusters.close(big.cluster_id, "")
        await work(rig, with_gpus)
        gpu = await now(clusters, gpu)
        assert (gpu.state, clusters.status(gpu).workers) == (ClusterState.RUNNING, 1)
        assert (with_gpus.side.handle.leased, with_gpus.side.handle.free) == (1, 3), "no second one without its GPU"
        other = Host(rig, "other-b", slots=1, nworkers=1, resources={"GPU": 1.0}).connect()
        await work(rig, with_gpus, other)
        assert clusters.status(gpu).workers == 2
        assert len(other.workers) == 1
