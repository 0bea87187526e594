"""A cluster that has had a worker is not closed because others cannot join, and none is taken before its data has moved."""

from __future__ import annotations

import math

import pytest
from tests.unit.controller.clusters.hosts import Host, new, now, one_host, work
from tests.unit.controller.rig import Rig, run

from dask_fleet.controller.clusters.setbacks import MOST_ROUNDS, Setbacks
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.protocol.cluster_frames import RetireWorkers, TakeSlots

# ---------------------------------------------------------------------- workers that do not join


@run
async def test_an_agent_that_dies_under_many_joining_workers_closes_nothing() -> None:
    async with Rig() as rig:
        clusters = rig.controller.clusters
        one = Host(rig, "one-a", slots=2).connect()
        record = await clusters.create(new(n_workers=8))
        await work(rig, one)
        two = Host(rig, "two-a", slots=6)
        two.joins = False
        two.connect()
        await work(rig, one, two)
        assert (clusters.status(record).workers, clusters.status(record).joining) == (2, 6)
        two.disconnect()
        successor = Host(rig, "two-b", slots=6).connect()
        await work(rig, one, successor)
        await rig.advance(1.0)
        await work(rig, one, successor)
        view = clusters.status(await now(clusters, record))
        assert (view.workers, view.waiting_for) == (8, None)


@run
async def test_losses_that_are_not_the_workers_own_are_not_counted() -> None:
    """Not even of a cluster that has had no worker yet: its agents could not place them."""
    async with one_host() as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new(n_workers=2))
        tried = 0
        for _ in range(3 * MOST_ROUNDS):
            await work(rig, host)
            for lease in list(host.workers):
                host.lose_worker(lease, "this agent has not so many free threads")
                tried += 1
            await rig.advance(31)
        assert tried == 2 * 3 * MOST_ROUNDS
        assert (await now(clusters, record)).state is ClusterState.RUNNING
        assert "the last one could not: this agent has not" in str(clusters.status(record).waiting_for)
        host.joins = True
        await rig.advance(31)
        await work(rig, host)
        assert (clusters.status(record).workers, clusters.status(record).waiting_for) == (2, None)


@run
async def test_workers_that_cannot_start_beside_one_that_did() -> None:
    """A module that is missing on one host only, say: they are tried again, ever later, and the first keeps what it has."""
    async with one_host(slots=4) as (rig, host, clusters):
        record = await clusters.create(new(n_workers=1))
        await work(rig, host)
        host.joins = False
        await clusters.scale(record.cluster_id, 4)
        rounds = 0
        for _ in range(20):
            await work(rig, host)
            failed = [lease for lease, worker in host.workers.items() if not worker.joined]
            rounds += bool(failed)
            for lease in failed:
                host.lose_worker(lease, "No module named 'nonsense'", failed=True)
            await rig.advance(31)
        assert rounds == 20
        assert (await now(clusters, record)).state is ClusterState.RUNNING
        assert clusters.status(record).workers == 1
        assert "No module named 'nonsense'" in str(clusters.status(record).waiting_for)


@run
async def test_a_new_scheduler_has_no_data_and_ends_with_the_reason() -> None:
    """What its workers need has gone while it ran: after the scheduler's end none can start, and none holds anything."""
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=2))
        await work(rig, host)
        host.joins = False
        host.end_scheduler(record.cluster_id, 1, "killed")
        for _ in range(MOST_ROUNDS):
            await work(rig, host)
            for lease in list(host.workers):
                host.lose_worker(lease, "No module named 'nonsense'", failed=True)
            await rig.advance(31)
        await work(rig, host)
        ended = await now(clusters, record)
        assert (ended.state, ended.epoch) == (ClusterState.CLOSED, 2)
        assert ended.reason == "its workers cannot start: No module named 'nonsense'"


@run
async def test_many_that_fail_at_once_are_one_round() -> None:
    async with one_host(slots=8) as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new(n_workers=8))
        await work(rig, host)
        for lease in list(host.workers):
            host.lose_worker(lease, "killed", failed=True)
        await work(rig, host)
        host.joins = True
        await rig.advance(1)
        await work(rig, host)
        assert clusters.status(await now(clusters, record)).workers == 8


@run
async def test_after_a_restart_a_worker_that_has_joined_still_counts() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=1))
        await work(rig, host)
    rig = host.rig = Rig(ledger=rig.ledger, clock=rig.clock)
    async with rig:
        host.side = None
        host.connect()
        clusters = rig.controller.clusters
        host.joins = False
        await clusters.scale(record.cluster_id, 2)
        for _ in range(2 * MOST_ROUNDS):
            await work(rig, host)
            for lease in [lease for lease, worker in host.workers.items() if not worker.joined]:
                host.lose_worker(lease, "No module named 'nonsense'", failed=True)
            await rig.advance(31)
        assert (await now(clusters, record)).state is ClusterState.RUNNING


@run
async def test_workers_that_take_long_to_join_are_told_of() -> None:
    async with one_host() as (rig, host, clusters):
        host.joins = False
        record = await clusters.create(new(n_workers=2))
        await work(rig, host)
        assert clusters.status(record).waiting_for == "2 workers to join"
        await rig.advance(45)
        await work(rig, host)
        assert "2 workers to join, for 45 s now" in str(clusters.status(record).waiting_for)


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_the_back_off_grows_and_is_bounded(jitter: float) -> None:
    setbacks, now_s = Setbacks(), 100.0
    delays = []
    for _ in range(40):
        delay = setbacks.add("why", own=True, granted_at=now_s, now=now_s + 1, jitter=jitter)
        assert delay is not None
        assert setbacks.add("why", own=True, granted_at=now_s, now=now_s + 2, jitter=jitter) is None, "of the same round"
        assert setbacks.not_before == now_s + 1 + delay
        delays.append(delay)
        now_s += 1 + delay
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == ((0.1, 15.0) if jitter == 0.0 else (0.2, 30.0))
    assert math.isclose(delays[3], 8 * delays[0])
    assert setbacks.are_hopeless(1)
    setbacks.joined(1)
    assert not setbacks.are_hopeless(1)
    assert setbacks.add("why", own=True, granted_at=now_s, now=now_s + 1, jitter=jitter) == delays[0]


def test_what_a_worker_died_of_says_more_than_what_befell_another() -> None:
    setbacks = Setbacks()
    setbacks.add("its agent is lost", own=False, granted_at=0, now=1, jitter=0)
    setbacks.add("No module named 'nonsense'", own=True, granted_at=2, now=3, jitter=0)
    setbacks.add("its agent is lost", own=False, granted_at=4, now=5, jitter=0)
    assert setbacks.why == "No module named 'nonsense'"


# ---------------------------------------------------------------------- workers that are to leave


@run
async def test_no_deadline_takes_a_worker_whose_data_has_not_moved() -> None:
    """Its scheduler takes in a large graph, for as long as it likes; it is asked again and again, and says at last."""
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=3, idle_timeout_s=None))
        await work(rig, host)
        host.retires = False
        await clusters.scale(record.cluster_id, 1)
        for _ in range(40):
            await rig.advance(31)
            await work(rig, host)
        assert host.got(TakeSlots) == []
        asked = host.got(RetireWorkers)
        assert len(asked) >= 40, "the wish is repeated"
        assert {tuple(frame.workers) for frame in asked} == {("1", "2")}
        view = clusters.status(record)
        assert (view.workers, view.wanted) == (1, 1)
        assert view.waiting_for == "the data of 2 workers to be moved before they leave"
        host.retires = True
        await rig.advance(16)
        await work(rig, host)
        assert len(host.workers) == 1
        assert clusters.status(record).waiting_for is None


@run
async def test_data_that_fits_nowhere_stays_and_says_so() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=3, idle_timeout_s=None))
        await work(rig, host)
        host.kept = {"2": "none of the 2 others has memory for its 4 GiB"}
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        assert len(host.workers) == 2, "the other one went"
        waits = str(clusters.status(record).waiting_for)
        assert "worker 2 has to stay for now, none of the 2 others has memory for its 4 GiB: release" in waits
        for _ in range(10):
            await rig.advance(31)
            await work(rig, host)
        assert len(host.workers) == 2
        host.kept = {}  # released
        await rig.advance(31)
        await work(rig, host)
        assert [worker.frame.worker for worker in host.workers.values()] == ["0"]


@run
async def test_one_that_could_not_go_stays_when_more_are_wanted_again() -> None:
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=2, idle_timeout_s=None))
        await work(rig, host)
        host.kept = {"1": "there is no other"}
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        assert clusters.status(record).workers == 1
        await clusters.scale(record.cluster_id, 2)
        await work(rig, host)
        assert sorted(worker.frame.worker for worker in host.workers.values()) == ["0", "1"]
        assert (clusters.status(record).workers, clusters.status(record).waiting_for) == (2, None)


@run
async def test_one_that_moved_its_data_after_all_leaves_and_is_replaced() -> None:
    """The scheduler was asked again, then the user wanted more: the scheduler gives the worker no more tasks, so another
    takes its place.
    """
    async with one_host() as (rig, host, clusters):
        record = await clusters.create(new(n_workers=2, idle_timeout_s=None))
        await work(rig, host)
        host.kept = {"1": "there is no other"}
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        await rig.advance(31)  # asked again, not answered yet
        host.kept = {}
        await clusters.scale(record.cluster_id, 2)
        await work(rig, host)
        assert sorted(worker.frame.worker for worker in host.workers.values()) == ["0", "2"]
        assert clusters.status(record).workers == 2


@run
async def test_closing_and_a_lost_host_do_not_wait_for_data() -> None:
    async with one_host() as (rig, host, clusters):
        host.retires = False
        record = await clusters.create(new(n_workers=2, max_lifetime_s=60.0, idle_timeout_s=None))
        await work(rig, host)
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        await rig.advance(31)
        assert len(host.workers) == 2
        await rig.advance(31)
        await work(rig, host)
        assert (await now(clusters, record)).reason == "its lifetime of 60 s is over"
        assert host.workers == {}


@run
async def test_a_connection_that_broke_over_the_answer() -> None:
    async with one_host() as (rig, host, clusters):
        host.retires = False
        record = await clusters.create(new(n_workers=2, idle_timeout_s=None))
        await work(rig, host)
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        host.disconnect()
        host.retires = True
        host.connect()
        await work(rig, host)
        assert len(host.workers) == 1, "asked again at once"
