"""Spare clusters: made on slots that nobody wants, handed out once, gone when anybody wants the slots."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.controller.clusters.hosts import FaultyLedger, Host, new, now, one_host, work
from tests.unit.controller.rig import HandClock, Rig, outcome, run

from dask_fleet.controller.clusters.spare_plan import ACTIVE_S
from dask_fleet.model.cluster_states import ClusterState, SlotLeaseState
from dask_fleet.model.clusters import ClusterEventKind, ClusterKind, ClusterRecord
from dask_fleet.model.errors import Conflict, LedgerUnavailable, NotFound, QuotaExceeded
from dask_fleet.model.states import RunState
from dask_fleet.protocol.cluster_frames import ClusterStatus, OpenCluster, RetireWorkers, TakeSlots


async def use(rig: Rig, host: Host, name: str = "first", **shape: Any) -> ClusterRecord:
    """Take a cluster, close it, and let time pass until the next one may be kept ready."""
    clusters = rig.controller.clusters
    record = await clusters.create(new(name, **shape))
    await work(rig, host)
    await clusters.close(record.cluster_id, "used")
    await work(rig, host)
    await rig.advance(2)
    await work(rig, host)
    return record


async def spares(rig: Rig) -> list[ClusterRecord]:
    return [record for record in await rig.ledger.clusters() if record.kind is ClusterKind.SPARE]


async def the_spare(rig: Rig) -> ClusterRecord:
    (spare,) = await spares(rig)
    assert spare.state is ClusterState.RUNNING
    return spare


def free_slots(host: Host) -> int:
    assert host.side is not None
    return host.side.handle.free


@run
async def test_one_is_made_for_who_was_here_and_handed_out_in_the_same_breath() -> None:
    async with one_host(spare_clusters=1) as (rig, host, clusters):
        await use(rig, host, idle_timeout_s=100.0, max_lifetime_s=1000.0)
        spare = await the_spare(rig)
        assert len(await rig.ledger.slot_leases(cluster_id=spare.cluster_id)) == 2
        assert free_slots(host) == 2
        # It is nobody's yet.
        assert await clusters.list("default") == []
        for name in (spare.name, spare.cluster_id):
            with pytest.raises(NotFound):
                await clusters.find("default", name)
        (opened,) = [frame for frame in host.got(OpenCluster) if frame.cluster == spare.cluster_id]
        assert opened.idle_timeout_s is None

        await rig.advance(300)  # its time without use is not its user's
        request = new("mine", idle_timeout_s=100.0, max_lifetime_s=1000.0)
        record = await clusters.create(request, b"csr")
        assert (record.state, record.kind, record.cluster_id) == (ClusterState.RUNNING, ClusterKind.USER, spare.cluster_id)
        assert (record.name, record.user, record.spec.n_workers) == ("mine", "ada", 2)
        assert record.address == spare.address
        assert clusters.status(record).workers == 2
        asked = asyncio.create_task(clusters.sign(record.cluster_id, b"csr"))
        await work(rig, host)
        assert await asked == (b"signed csr", b"ca")
        assert await clusters.list("default") == [record]
        assert host.got(OpenCluster)[-1].idle_timeout_s == 100.0, "its scheduler learns of the limit"
        kinds = [event.kind for event in await clusters.events(record)]
        assert kinds[0] is ClusterEventKind.CREATED
        assert kinds[-1] is ClusterEventKind.ADOPTED
        # Idle counts from now on, as does its life.
        host.say(ClusterStatus(record.cluster_id, 1, 2, 0, 0, 302.0))
        await rig.advance(60)
        assert (await now(clusters, record)).state is ClusterState.RUNNING
        await rig.advance(50)
        assert (await now(clusters, record)).state is ClusterState.CLOSING


@run
async def test_who_asks_twice_gets_one() -> None:
    """The answer was lost on the way: the same request finds what it has made, also after a restart, also once it ended."""
    async with one_host(spare_clusters=1) as (rig, host, clusters):
        await use(rig, host, cluster_id="cluster-first")
        request = new("mine")
        one, other = await asyncio.gather(clusters.create(request), clusters.create(request))
        assert one == other
        with pytest.raises(Conflict):
            await clusters.create(request)
        assert (await clusters.find("default", request.cluster_id)).cluster_id == one.cluster_id
        assert len(await clusters.list("default")) == 1
        host.disconnect()
        ledger, clock = rig.ledger, rig.clock
    async with Rig(ledger=ledger, clock=clock, spare_clusters=1) as rig:
        clusters = rig.controller.clusters
        with pytest.raises(Conflict):
            await clusters.create(request)
        assert (await clusters.find("default", request.cluster_id)).cluster_id == one.cluster_id
        host.rig = rig
        host.connect()
        await work(rig, host)
        assert host.got(OpenCluster)[-1].idle_timeout_s == request.spec.idle_timeout_s, "it is told again of its limits"
        await clusters.close(one.cluster_id, "enough")
        await work(rig, host)
        assert (await clusters.find("default", request.cluster_id)).state is ClusterState.CLOSED
        with pytest.raises(Conflict):
            await clusters.create(request)
        host.disconnect()
    async with Rig(ledger=ledger, clock=clock, spare_clusters=1) as rig:
        clusters = rig.controller.clusters
        host.rig = rig
        host.connect()
        await use(rig, host, "other")
        await the_spare(rig)
        for repeated in (request, new("first", cluster_id="cluster-first")):  # it got a spare; its cluster was made for it
            with pytest.raises(Conflict):
                await clusters.create(repeated)
            assert (await clusters.find("default", repeated.cluster_id)).state is ClusterState.CLOSED
        await the_spare(rig)


@run
async def test_two_who_ask_at_once_get_two_clusters_and_one_of_them_the_spare() -> None:
    async with one_host(spare_clusters=1) as (rig, host, clusters):
        await use(rig, host)
        spare = await the_spare(rig)
        one, other = await asyncio.gather(clusters.create(new("x")), clusters.create(new("y")))
        assert one.cluster_id == spare.cluster_id
        assert other.cluster_id != spare.cluster_id
        await work(rig, host)
        assert {clusters.status(record).workers for record in (one, other)} == {2}
        with pytest.raises(Conflict):  # also where a spare would do
            await clusters.create(new("x"))


@run
async def test_it_is_scaled_to_what_is_asked_for() -> None:
    async with one_host(slots=8, spare_clusters=1) as (rig, host, clusters):
        await use(rig, host)
        spare = await the_spare(rig)
        larger = await clusters.create(new("larger", n_workers=4))
        assert larger.cluster_id == spare.cluster_id
        await work(rig, host)
        assert clusters.status(larger).workers == 4
        await clusters.close(larger.cluster_id, "used")
        await work(rig, host)
        await rig.advance(2)
        await work(rig, host)
        smaller = await clusters.create(new("smaller", n_workers=1))
        assert smaller.cluster_id == (await clusters.find("default", "smaller")).cluster_id
        waiting = asyncio.create_task(clusters.wait(smaller.cluster_id, 60, workers=True))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done(), "its user would see workers that are about to leave"
        await work(rig, host)
        assert (await waiting).spec.n_workers == 1
        assert len(host.got(RetireWorkers)) == 1
        assert clusters.status(smaller).workers == 1


@run
async def test_another_tenant_or_another_shape_does_not_get_it() -> None:
    async with one_host(slots=16, spare_clusters=1) as (rig, host, clusters):
        await use(rig, host)
        spare = await the_spare(rig)
        for request in (new("theirs", tenant="other"), new("wide", threads_per_worker=2), new("shared", shared=True)):
            assert (await clusters.create(request)).cluster_id != spare.cluster_id
        await work(rig, host)
        assert (await the_spare(rig)).cluster_id == spare.cluster_id


@run
async def test_it_counts_for_nobody() -> None:
    async with one_host(slots=8, spare_clusters=1, max_clusters_per_user=1) as (rig, host, clusters):
        await use(rig, host)
        await clusters.create(new("mine"))
        await work(rig, host)
        await rig.advance(2)
        await work(rig, host)
        await the_spare(rig)
        with pytest.raises(QuotaExceeded):
            await clusters.create(new("more"))


@run
async def test_a_job_gets_its_slots_at_once() -> None:
    async with one_host(slots=3, nworkers=3, spare_clusters=1) as (rig, host, _):
        await use(rig, host)
        assert free_slots(host) == 1, "one slot is left for a job that comes alone"
        first = await rig.submit("1")
        assert (await rig.job(first)).state is RunState.RUNNING
        await the_spare(rig)
        others = [await rig.submit(str(number)) for number in (2, 3)]
        await work(rig, host)
        assert [(await rig.job(job)).state for job in others] == [RunState.RUNNING] * 2
        assert await spares(rig) == []
        assert free_slots(host) == 0
        # No other is made while they run, and not at once afterwards, either.
        await rig.advance(30)
        assert await spares(rig) == []
        host.say(*(outcome(job) for job in (first, *others)))
        await rig.advance(2)
        await work(rig, host)
        await the_spare(rig)


@run
async def test_it_does_not_take_the_last_slot_from_jobs() -> None:
    async with one_host(slots=2, nworkers=2, spare_clusters=1) as (rig, host, _):
        await use(rig, host, n_workers=2)
        assert (await the_spare(rig)).spec.n_workers == 1
        assert free_slots(host) == 1
        await rig.controller.clusters.create(new("mine", n_workers=2))
        await work(rig, host)
        assert free_slots(host) == 0, "who asks for two gets two"


@run
async def test_clusters_in_need_get_its_slots() -> None:
    async with one_host(slots=4, spare_clusters=1) as (rig, host, clusters):
        await use(rig, host)
        spare = await the_spare(rig)
        wide = await clusters.create(new("wide", n_workers=1, threads_per_worker=4))
        await work(rig, host)
        assert clusters.status(wide).workers == 1
        assert (await now(clusters, spare)).state is ClusterState.CLOSED
        ended = await rig.ledger.slot_leases(cluster_id=spare.cluster_id, ended=True)
        assert {lease.state for lease in ended} == {SlotLeaseState.RELEASED}
        await clusters.close(wide.cluster_id, "used")
        await work(rig, host)
        await rig.advance(10)
        await work(rig, host)
        # And for growth.
        mine = await clusters.create(new("mine", n_workers=1))
        await work(rig, host)
        await rig.advance(10)
        await work(rig, host)
        await the_spare(rig)
        await clusters.scale(mine.cluster_id, 4)
        await work(rig, host)
        assert clusters.status(mine).workers == 4
        assert await spares(rig) == []
        assert host.most_threads <= 4


@run
async def test_it_goes_when_its_tenant_has_gone() -> None:
    async with one_host(spare_clusters=1) as (rig, host, _):
        await use(rig, host)
        await rig.advance(ACTIVE_S - 10)
        await the_spare(rig)
        await rig.advance(15)
        await work(rig, host)
        assert await spares(rig) == []
        assert free_slots(host) == 4
        await rig.advance(30)
        assert await spares(rig) == []
        assert rig.controller.clusters.book.entries == {}


@run
async def test_one_that_breaks_is_closed_and_made_again_later() -> None:
    async with one_host(spare_clusters=1) as (rig, host, _):
        await use(rig, host)
        spare = await the_spare(rig)
        host.lose_worker(next(iter(host.workers)))
        await work(rig, host)
        await rig.advance(2)
        await work(rig, host)
        assert (await now(rig.controller.clusters, spare)).state is ClusterState.CLOSED
        assert free_slots(host) == 4
        await rig.advance(6)
        await work(rig, host)
        spare = await the_spare(rig)
        host.end_scheduler(spare.cluster_id, 1, "killed")
        await work(rig, host)
        assert (await now(rig.controller.clusters, spare)).state is ClusterState.CLOSED
        assert await spares(rig) == []


@run
async def test_a_scheduler_that_dies_while_it_is_handed_out() -> None:
    async with one_host(spare_clusters=1) as (rig, host, clusters):
        await use(rig, host)
        spare = await the_spare(rig)
        asked = asyncio.create_task(clusters.create(new("mine")))
        await asyncio.sleep(0)
        host.end_scheduler(spare.cluster_id, 1, "killed")
        record = await asked
        await work(rig, host)
        record = await now(clusters, record)
        assert (record.state, record.name) == (ClusterState.RUNNING, "mine")
        assert clusters.status(record).workers == 2
        assert record.epoch == 2 or record.cluster_id != spare.cluster_id, "a new scheduler, or another cluster"


@run
async def test_a_full_ledger_hands_nothing_out_and_keeps_it() -> None:
    clock = HandClock()
    ledger = FaultyLedger(clock=clock)
    async with one_host(ledger=ledger, clock=clock, spare_clusters=1) as (rig, host, clusters):
        await use(rig, host)
        spare = await the_spare(rig)
        ledger.is_full = True
        with pytest.raises(LedgerUnavailable):
            await clusters.create(new("mine"))
        ledger.is_full = False
        assert (await clusters.create(new("mine"))).cluster_id == spare.cluster_id


@run
async def test_a_restarted_server_keeps_a_spare_and_ends_what_was_half_made() -> None:
    async with one_host(spare_clusters=1) as (rig, host, _):
        await use(rig, host)
        spare = await the_spare(rig)
        half = await rig.ledger.create_cluster(new("half", kind=ClusterKind.SPARE, user=""))
        host.disconnect()
        ledger, clock = rig.ledger, rig.clock
    async with Rig(ledger=ledger, clock=clock, spare_clusters=1) as rig:
        host.rig = rig
        host.connect()
        await work(rig, host)
        await rig.advance(3)
        await work(rig, host)
        assert (await now(rig.controller.clusters, half)).state is ClusterState.CLOSED
        assert (await the_spare(rig)).cluster_id == spare.cluster_id
        record = await rig.controller.clusters.create(new("mine"))
        assert record.cluster_id == spare.cluster_id
        host.disconnect()
    async with Rig(ledger=ledger, clock=clock, spare_clusters=0) as rig:  # switched off meanwhile
        host.rig = rig
        host.connect()
        await work(rig, host)
        await rig.advance(5)
        await work(rig, host)
        assert [each.cluster_id for each in await rig.ledger.clusters()] == [record.cluster_id]


@run
async def test_without_them_there_are_none() -> None:
    async with one_host(spare_clusters=0) as (rig, host, _):
        await use(rig, host)
        await rig.advance(10)
        assert await rig.ledger.clusters() == []
        assert host.got(TakeSlots)
