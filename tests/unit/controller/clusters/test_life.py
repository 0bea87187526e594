"""A cluster from its creation to its end, with everything that can go wrong between."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.controller.clusters.hosts import Host, new, now, one_host, work
from tests.unit.controller.rig import Rig, run

from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model.cluster_states import ClusterEventKind, ClusterState, SlotLeaseState
from dask_fleet.model.errors import (
    AgentUnreachable,
    ClusterImpossible,
    Conflict,
    Draining,
    LedgerUnavailable,
    NotFound,
)
from dask_fleet.model.leases import LEASE_S
from dask_fleet.protocol.cluster_frames import (
    CloseCluster,
    ClusterOpened,
    ClusterStatus,
    GrantSlots,
    OpenCluster,
    RetireWorkers,
    Sign,
    Signature,
    SlotsJoined,
    TakeSlots,
    WorkersDeaf,
)


@run
async def test_a_cluster_comes_up_is_signed_for_and_closes() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(threads_per_worker=2), b"csr")
        await work(rig, host)
        record = await now(clusters, record)
        assert (record.state, record.epoch, record.agent) == (ClusterState.RUNNING, 1, "local-a")
        assert record.address.startswith("tls://local-a")
        view = clusters.status(record)
        assert (view.workers, view.wanted, view.waiting_for) == (2, 2, None)
        assert host.side is not None
        assert (host.side.handle.leased, host.side.handle.free) == (4, 0)
        assert len(host.got(Sign)) == 1, "signed before anybody asked"
        assert await clusters.sign(record.cluster_id, b"csr") == (b"signed csr", b"ca")
        grants = host.got(GrantSlots)
        assert [(grant.worker, grant.threads, grant.fresh, grant.address) for grant in grants] == [
            ("0", 2, True, ""), ("1", 2, True, ""),
        ]  # fmt: skip
        assert (await clusters.find("default", "c")).cluster_id == record.cluster_id
        assert await clusters.list("default") == [record]
        assert (await clusters.close(record.cluster_id, "enough")).state is ClusterState.CLOSING
        await work(rig, host)
        ended = await clusters.wait_closed(record.cluster_id, 0)
        assert (ended.state, ended.reason) == (ClusterState.CLOSED, "enough")
        assert (host.schedulers, host.workers, host.side.handle.leased) == (set(), {}, 0)
        assert clusters.book.entries == {}
        assert clusters.book.lease_of == {}
        assert await rig.ledger.slot_leases() == []
        assert (await clusters.close(record.cluster_id, "again")).state is ClusterState.CLOSED
        kinds = [event.kind for event in await clusters.events(record)]
        assert kinds[:4] == [
            ClusterEventKind.CREATED, ClusterEventKind.OPENING,
            ClusterEventKind.SLOTS_GRANTED, ClusterEventKind.SLOTS_GRANTED,
        ]  # fmt: skip
        assert kinds[-1] is ClusterEventKind.CLOSED


@run
async def test_it_starts_with_what_is_there_says_what_it_waits_for_and_grows() -> None:
    async with Rig() as rig:
        clusters = rig.controller.clusters
        record = await clusters.create(new(n_workers=6))
        assert clusters.status(record).waiting_for == "an agent of pool 'default': none is connected"
        one = Host(rig, "one-a", slots=4).connect()
        await work(rig, one)
        record = await now(clusters, record)
        assert record.state is ClusterState.RUNNING
        view = clusters.status(record)
        assert (view.workers, view.wanted) == (4, 6)
        assert view.waiting_for is not None
        assert "has 4 slots, room for 4 of the 6 workers" in view.waiting_for
        two = Host(rig, "two-a", slots=4).connect()
        await work(rig, one, two)
        assert clusters.status(record).workers == 6
        assert len(two.workers) == 2
        # Joined from elsewhere: with the scheduler's address and authority, and certificates by way of the server.
        grant = two.got(GrantSlots)[0]
        assert grant.address == record.address
        assert grant.ca == record.ca
        two.want_signature(grant.lease)
        await work(rig, one, two)
        assert [(frame.lease, frame.certificate) for frame in two.got(Signature)] == [(grant.lease, b"signed csr")]
        assert [sign.role for sign in one.got(Sign)] == ["worker"]


@run
async def test_a_cluster_without_workers_gets_its_scheduler_at_once() -> None:
    async with one_host(slots=1) as (rig, host, clusters):
        full = await clusters.create(new("full", n_workers=1))
        await work(rig, host)
        empty = await clusters.create(new("empty", n_workers=0))
        await work(rig, host)
        assert (await now(clusters, empty)).state is ClusterState.RUNNING
        await clusters.scale(empty.cluster_id, 1)
        await work(rig, host)
        assert clusters.status(empty).workers == 0
        waits = clusters.status(empty).waiting_for
        assert waits == "slots for 1 worker: of the 1 slots of pool 'default', 1 are lent to clusters, the rest to jobs"
        await clusters.close(full.cluster_id, "")
        await work(rig, host)
        assert clusters.status(empty).workers == 1


@run
async def test_a_lost_scheduler_is_replaced_at_once_and_the_zombie_is_fenced() -> None:
    async with Rig() as rig:
        host, other = Host(rig, "one-a").connect(), Host(rig, "two-a").connect()
        clusters = rig.controller.clusters
        record = await clusters.create(new(n_workers=3))
        await work(rig, host, other)
        before = await now(clusters, record)
        scheduler = next(each for each in (host, other) if each.schedulers)
        scheduler.end_scheduler(record.cluster_id, 1, "killed by SIGKILL")
        await work(rig, host, other)
        after = await now(clusters, record)
        assert (after.state, after.epoch) == (ClusterState.RUNNING, 2)
        assert after.address != before.address
        assert clusters.status(after).workers == 3
        names = [lease.worker for lease in await rig.ledger.slot_leases(ended=True)]
        assert len(names) == len(set(names)) == 6
        # What is still said of epoch 1 changes nothing.
        scheduler.say(ClusterOpened(record.cluster_id, 1, "tls://zombie", "", b""))
        scheduler.say(ClusterStatus(record.cluster_id, 1, 9, 9, 9, 0.0))
        await work(rig, host, other)
        assert (await now(clusters, record)) == after
        assert CloseCluster(record.cluster_id, 1) in scheduler.seen
        assert clusters.status(after).tasks == 0
        story = [event.kind for event in await clusters.events(after)]
        assert story.count(ClusterEventKind.SCHEDULER_LOST) == 1


@run
async def test_a_scheduler_that_dies_again_and_again_is_given_up() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new())
        await work(rig, host)
        for epoch in range(1, 5):
            host.end_scheduler(record.cluster_id, epoch, "a bad preload")
            await work(rig, host)
        record = await clusters.wait(record.cluster_id, 0)
        assert record.state is ClusterState.FAILED
        assert "lost 4 times" in record.reason
        assert "a bad preload" in record.reason
        assert host.workers == {}
        assert clusters.book.entries == {}


@run
async def test_the_agent_is_lost_and_the_cluster_goes_on_elsewhere() -> None:
    async with Rig() as rig:
        one = Host(rig, "one-a", slots=2).connect()
        clusters = rig.controller.clusters
        record = await clusters.create(new(n_workers=3))
        await work(rig, one)
        two = Host(rig, "two-a", slots=2).connect()
        await work(rig, one, two)
        assert clusters.status(record).workers == 3
        one.disconnect()  # its host is gone
        await work(rig, two)
        assert clusters.status(record).workers == 3, "until the lease lapses it may come back"
        await rig.advance(21)
        await work(rig, two)
        record = await now(clusters, record)
        assert (record.state, record.epoch, record.agent) == (ClusterState.RUNNING, 2, "two-a")
        assert clusters.status(record).workers == 2
        lapsed = [lease for lease in await rig.ledger.slot_leases(ended=True) if lease.state is SlotLeaseState.LAPSED]
        assert {lease.agent for lease in lapsed} == {"one-a"}
        # It was only stopped: what it still runs is ended before any of its slots is given out again.
        one.joins = False
        side = one.connect()
        assert side.side is not None
        assert side.side.handle.free <= 0
        await work(rig, one, two)
        assert one.schedulers == set()
        assert clusters.status(record).workers == 2
        one.joins = True
        one.join()
        await work(rig, one, two)
        assert clusters.status(record).workers == 3
        assert one.most_threads <= 2


@run
async def test_a_lost_worker_is_replaced() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=2))
        await work(rig, host)
        host.lose_worker(next(iter(host.workers)), "it took more memory than it may")
        await work(rig, host)
        assert clusters.status(record).workers == 2
        (lapsed,) = [lease for lease in await rig.ledger.slot_leases(ended=True) if not lease.state.holds_slots]
        assert (lapsed.state, lapsed.reason) == (SlotLeaseState.LAPSED, "it took more memory than it may")
        assert sorted(worker.frame.worker for worker in host.workers.values()) == ["1", "2"]


@run
async def test_a_deaf_worker_of_another_agent_is_ended_and_replaced() -> None:
    async with Rig() as rig:
        hosts = [Host(rig, f"local-{name}", slots=1, nworkers=1).connect() for name in "ab"]
        clusters = rig.controller.clusters
        record = await now(clusters, await clusters.create(new(n_workers=2), b""))
        await work(rig, *hosts)
        record = await now(clusters, record)
        here, elsewhere = sorted(hosts, key=lambda host: host.agent_id != record.agent)
        (own,), (deaf,) = here.workers, elsewhere.workers
        stale = WorkersDeaf(record.cluster_id, record.epoch + 1, [f"tls://worker/{own}"])
        here.say(stale, WorkersDeaf(record.cluster_id, record.epoch, [f"tls://worker/{deaf}", "tls://gone"]))
        await work(rig, *hosts)
        assert set(here.workers) == {own}
        assert len(elsewhere.workers) == 1
        assert deaf not in elsewhere.workers
        assert clusters.status(await now(clusters, record)).workers == 2


@run
async def test_workers_that_can_never_start_end_the_cluster() -> None:
    async with one_host() as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new(n_workers=1, preload=("nonsense",)))
        for _ in range(6):
            await work(rig, host)
            for lease in list(host.workers):
                host.lose_worker(lease, "No module named 'nonsense'", failed=True)
            await rig.advance(11)
        await work(rig, host)
        record = await clusters.wait(record.cluster_id, 0)
        assert record.state is ClusterState.CLOSED
        assert record.reason == "its workers cannot start: No module named 'nonsense'"


@run
async def test_scaling_down_moves_the_data_first() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=4))
        await work(rig, host)
        host.retires = False
        await clusters.scale(record.cluster_id, 2, leave=["0"])
        await work(rig, host)
        (retire,) = host.got(RetireWorkers)
        assert set(retire.workers) == {"0", "3"}
        assert host.got(TakeSlots) == [], "their data has not moved yet"
        assert clusters.status(record).workers == 2
        host.retires = True
        await rig.advance(16)  # it is asked again
        await work(rig, host)
        assert len(host.got(TakeSlots)) == 2
        assert sorted(worker.frame.worker for worker in host.workers.values()) == ["1", "2"]
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        assert len(host.workers) == 1
        await clusters.scale(record.cluster_id, 3)
        await work(rig, host)
        assert len(host.workers) == clusters.status(record).workers == 3
        assert host.side is not None
        assert host.side.handle.leased == 3


@run
async def test_idle_clusters_and_old_ones_are_closed() -> None:
    async with one_host() as (rig, host, clusters):
        idle = await clusters.create(new("idle", n_workers=1, idle_timeout_s=60.0))
        busy = await clusters.create(new("busy", n_workers=1, idle_timeout_s=60.0))
        old = await clusters.create(new("old", n_workers=1, max_lifetime_s=90.0))
        await work(rig, host)
        host.say(ClusterStatus(idle.cluster_id, 1, 1, 0, 1, 5.0), ClusterStatus(busy.cluster_id, 1, 1, 3, 1, 0.0))
        assert clusters.status(idle).idle_s == 5.0
        await rig.advance(50)
        await work(rig, host)
        assert [each.state for each in await clusters.list("default")] == [ClusterState.RUNNING] * 3
        await rig.advance(10)
        await work(rig, host)
        ended = await clusters.wait(idle.cluster_id, 0)
        assert (ended.state, ended.reason) == (ClusterState.CLOSED, "nothing was computed on it for 60 s")
        await rig.advance(40)
        await work(rig, host)
        ended = await clusters.wait(old.cluster_id, 0)
        assert (ended.state, ended.reason) == (ClusterState.CLOSED, "its lifetime of 90 s is over")
        assert [each.name for each in await clusters.list("default")] == ["busy"]


@run
async def test_nothing_is_impossible_while_an_agent_from_before_may_come_back() -> None:
    async with Rig() as rig:
        Host(rig, "local-a").connect()
        Host(rig, "big-b", slots=16, nworkers=1).connect()
        await rig.advance(2)  # both have leases
        ledger, clock = rig.ledger, rig.clock
    async with Rig(ledger=ledger, clock=clock) as rig:
        clusters = rig.controller.clusters
        small = Host(rig, "local-c").connect()  # of the same home as local-a: its successor
        record = await clusters.create(new(threads_per_worker=16, n_workers=1))
        await rig.advance(LEASE_S - 3)
        await work(rig, small)
        assert (await now(clusters, record)).state is ClusterState.PENDING
        await rig.advance(10)
        assert (await clusters.wait(record.cluster_id, 0)).reason.startswith("a worker of 16 threads fits on no agent")
        with pytest.raises(ClusterImpossible):
            await clusters.create(new(threads_per_worker=16, n_workers=1))
    async with Rig(ledger=ledger, clock=clock) as rig:
        small.rig = rig
        small.connect()
        with pytest.raises(ClusterImpossible):  # the one that lapsed is not waited for again
            await rig.controller.clusters.create(new(threads_per_worker=16, n_workers=1))


@run
async def test_bad_requests_are_refused_and_leave_nothing() -> None:
    async with Rig(max_clusters_per_user=2, max_cluster_workers=8) as rig:
        clusters = rig.controller.clusters
        host = Host(rig, "local-a", slots=4, nworkers=2).connect()
        with pytest.raises(ClusterImpossible, match="fits on no agent of pool 'default': the largest has 4 slots"):
            await clusters.create(new(threads_per_worker=5))
        with pytest.raises(ClusterImpossible, match="there is no pool 'gpu'; the pools are: 'default'"):
            await clusters.create(new(pool="gpu"))
        with pytest.raises(ClusterImpossible, match="at most 8 workers"):
            await clusters.create(new(n_workers=9))
        made = await clusters.create(new("one"))
        with pytest.raises(Conflict, match="'one'"):
            await clusters.create(new("one"))
        both = await asyncio.gather(*(clusters.create(new(f"n{n}")) for n in range(2)), return_exceptions=True)
        assert [type(each).__name__ for each in both] == ["ClusterRecord", "QuotaExceeded"]
        await clusters.create(new("other", user="bob"))
        with pytest.raises(NotFound):
            await clusters.find("elsewhere", made.cluster_id)
        with pytest.raises(NotFound):
            await clusters.find("default", "")
        for nobody in (clusters.wait("nobody", 0), clusters.close("nobody", ""), clusters.scale("nobody", 1),
                       clusters.sign("nobody", b"")):  # fmt: skip
            with pytest.raises(NotFound):
                await nobody
        await rig.settle()
        with pytest.raises(Conflict, match="is starting"):
            await clusters.sign(made.cluster_id, b"csr")
        await work(rig, host)
        host.disconnect()
        with pytest.raises(AgentUnreachable, match="the cluster goes on"):
            await clusters.sign(made.cluster_id, b"csr")
        host.connect()
        await clusters.close(made.cluster_id, "")
        await work(rig, host)
        with pytest.raises(Conflict, match="cannot be scaled"):
            await clusters.scale(made.cluster_id, 1)
        await rig.controller.drain(0)
        with pytest.raises(Draining):
            await clusters.create(new("late"))


@run
async def test_lost_frames_are_mended_when_the_agent_comes_back() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=2))
        await rig.settle()
        assert [type(frame) for frame in host.take()][1:] == [OpenCluster, GrantSlots, GrantSlots]  # and they are lost
        host.disconnect()
        host.connect()
        await work(rig, host)
        assert clusters.status(record).workers == 2
        # A worker is lost while the connection is; another one joins.
        host.disconnect()
        gone = next(iter(host.workers))
        host.workers.pop(gone)
        host.connect()
        await work(rig, host)
        assert clusters.status(record).workers == len(host.workers) == 2
        host.disconnect()
        host.schedulers.clear()
        host.workers.clear()
        host.connect()
        await work(rig, host)
        assert (await now(clusters, record)).epoch == 2
        assert clusters.status(record).workers == 2


@run
async def test_frames_without_an_answer_are_sent_again() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=1))
        await rig.settle()
        host.take()
        await rig.advance(21)
        await work(rig, host)
        assert clusters.status(record).workers == 1
        await clusters.close(record.cluster_id, "")
        await rig.settle()
        host.take()
        await rig.advance(5)
        assert host.take() == []
        await rig.advance(12)
        await work(rig, host)
        assert (await clusters.wait(record.cluster_id, 0)).state is ClusterState.CLOSED


@run
async def test_a_scheduler_that_never_answers_is_lost() -> None:
    async with one_host() as (rig, host, clusters):
        host.opens = False
        record = await clusters.create(new(n_workers=1))
        for _ in range(13):
            await work(rig, host)
            await rig.advance(5)
        host.opens = True
        await work(rig, host)
        record = await now(clusters, record)
        assert (record.state, record.epoch) == (ClusterState.RUNNING, 2)


@run
async def test_a_restarted_server_takes_running_clusters_up() -> None:
    ledger = None
    async with one_host(slots=4) as (rig, host, clusters):
        kept = await clusters.create(new("kept", n_workers=2))
        lost = await clusters.create(new("lost", n_workers=1))
        closing = await clusters.create(new("closing", n_workers=1))
        waiting = await clusters.create(new("waiting", n_workers=1))
        await work(rig, host)
        await clusters.close(closing.cluster_id, "enough")
        await rig.settle()
        before = await now(clusters, kept)
        ledger, clock = rig.ledger, rig.clock
    host.side = None
    host.end_scheduler(lost.cluster_id, 1, "killed while nobody looked")
    async with Rig(ledger=ledger, clock=clock) as rig:
        clusters = rig.controller.clusters
        assert {each.name for each in await clusters.list("default")} == {"kept", "lost", "closing", "waiting"}
        assert rig.controller.agents.get("local-a") is not None
        host.rig, host.seen = rig, []
        host.connect()
        await work(rig, host)
        assert await now(clusters, kept) == before, "it was not disturbed"
        assert [frame for frame in host.got(GrantSlots) if frame.cluster == kept.cluster_id] == []
        assert clusters.status(kept).workers == 2
        assert (await now(clusters, lost)).epoch == 2
        assert (await clusters.wait(closing.cluster_id, 0)).state is ClusterState.CLOSED
        assert (await now(clusters, waiting)).state is ClusterState.RUNNING
        assert host.most_threads <= 4
        await clusters.scale(kept.cluster_id, 3)
        for each in (lost, waiting):
            await clusters.close(each.cluster_id, "")
        await work(rig, host)
        assert clusters.status(kept).workers == 3
        names = [lease.worker for lease in await ledger.slot_leases(cluster_id=kept.cluster_id, ended=True)]
        assert sorted(names) == ["0", "1", "2"]


@run
async def test_after_a_restart_what_nobody_reports_is_lost_with_the_lease() -> None:
    async with Rig() as rig:
        host = Host(rig, "one-a").connect()
        clusters = rig.controller.clusters
        record = await clusters.create(new(n_workers=1))
        await work(rig, host)
        ledger, clock = rig.ledger, rig.clock
    async with Rig(ledger=ledger, clock=clock) as rig:
        clusters = rig.controller.clusters
        two = Host(rig, "two-a").connect()
        await work(rig, two)
        assert (await now(clusters, record)).agent == "one-a"
        await rig.advance(21)
        await work(rig, two)
        record = await now(clusters, record)
        assert (record.state, record.epoch, record.agent) == (ClusterState.RUNNING, 2, "two-a")


@run
async def test_an_agent_of_another_ledger_ends_what_it_runs() -> None:
    async with Rig() as rig:
        host = Host(rig, "local-a")
        host.ledger_id = "another"
        host.schedulers = {("cluster-x", 1)}
        clusters = rig.controller.clusters
        host.say()
        await rig.settle()
        host.workers = {}
        host.connect()
        await work(rig, host)
        assert host.got(CloseCluster) == [CloseCluster("cluster-x", 1)]
        host.say(SlotsJoined("lease-unknown", ""))
        assert host.side is not None
        assert host.side.handle.free <= 0, "nobody knows how many slots it takes"
        await work(rig, host)
        assert host.got(TakeSlots) == [TakeSlots("lease-unknown", 0.0)]
        assert host.side.handle.free == 4
        assert clusters.book.entries == {}


class FullLedger(MemoryLedger):
    full = False

    def _now_us(self) -> int:
        if self.full:
            raise LedgerUnavailable("full")
        return super()._now_us()


@run
async def test_a_full_ledger_postpones() -> None:
    ledger = FullLedger()
    async with one_host(ledger=ledger) as (rig, host, clusters):
        record = await clusters.create(new())
        await work(rig, host)
        host.lose_worker(next(iter(host.workers)))
        ledger.full = True
        await work(rig, host)
        with pytest.raises(LedgerUnavailable):
            await clusters.create(new("other"))
        assert len(host.workers) == 1
        assert host.side is not None
        ledger.full = False
        await rig.advance(1)
        await work(rig, host)
        assert clusters.status(record).workers == 2
        ledger.full = True
        closing = asyncio.create_task(clusters.close(record.cluster_id, ""), name="closing")
        host.end_scheduler(record.cluster_id, 1, "killed")
        await work(rig, host)
        ledger.full = False
        await rig.advance(1)
        await work(rig, host)
        assert (await clusters.wait(record.cluster_id, 0)).state is ClusterState.CLOSED
        assert (await closing).state is not ClusterState.RUNNING
        assert host.side.handle.leased == 0


