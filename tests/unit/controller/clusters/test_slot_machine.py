"""Anything may happen in any order: no slot is ever held twice, none is lost, and a closed cluster holds none; no cluster is
closed, and no worker taken with its data, that nothing has asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tests.conftest import FULL
from tests.unit.controller.clusters.hosts import FaultyLedger, Host, new, work
from tests.unit.controller.rig import Rig

from dask_fleet.controller.clusters.book import Book, Entry, Held
from dask_fleet.controller.clusters.keeper import MOST_LOSSES, Keeper
from dask_fleet.controller.clusters.setbacks import MOST_ROUNDS
from dask_fleet.model.cluster_states import ClusterEventKind, ClusterState, SlotLeaseState
from dask_fleet.model.clusters import ClusterKind, ClusterSpec, NewCluster, SlotLease
from dask_fleet.model.errors import ClusterImpossible, Conflict, LedgerUnavailable

SLOTS = {"one-a": 2, "two-a": 3, "big-a": 4}
GIB = 1 << 30
"""Of memory goes with each slot."""
GPUS = {"one-a": 0, "two-a": 1, "big-a": 2}
"""What each agent declares; the first one none."""
LIVING = {ClusterState.PENDING, ClusterState.STARTING, ClusterState.RUNNING}
FITS_NOWHERE = {str(n): "there is no memory for it" for n in range(500)}


class SlotMachine(RuleBasedStateMachine):
    """A server, three agents and six clusters of two tenants, of which any may die, fall silent, or say things twice."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.hosts: dict[str, Host] = {}
        self.made: list[str] = []
        self.asked: dict[str, NewCluster] = {}
        self.closed: set[str] = set()
        """Clusters that somebody has closed."""
        self.failed: Counter[str] = Counter()
        """How many workers of a cluster could not start for a reason of their own."""
        self.moved: set[tuple[str, int, str]] = set()
        """Workers whose data the schedulers of agents that are dead have moved."""
        self.generation = 0

    def do(self, awaitable: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(30):
                return await awaitable

        return self.loop.run_until_complete(bounded())

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(ledger=None, max_clusters_per_user=100)
        self.rig.ledger = FaultyLedger(clock=self.rig.clock)
        self.start(self.rig.ledger)
        for agent in SLOTS:
            self.hosts[agent] = self.connected(agent)

    def start(self, ledger: Any) -> None:
        clock = self.rig.clock

        async def begin() -> None:
            self.rig = Rig(ledger=ledger, clock=clock, max_clusters_per_user=100)
            await self.rig.__aenter__()

        self.do(begin())

    def connected(self, agent: str) -> Host:
        async def connect() -> Host:
            return self.host(agent, agent).connect()

        return self.do(connect())  # type: ignore[no-any-return]

    def host(self, agent: str, name: str) -> Host:
        slots, gpus = SLOTS[agent], GPUS[agent]
        resources = {"GPU": float(gpus)} if gpus else {}
        return Host(self.rig, name, slots=slots, nworkers=slots, memory_limit=GIB, resources=resources)

    def rest(self) -> None:
        self.do(self.rig.settle())

    # ------------------------------------------------------------------ what people do

    @precondition(lambda self: len(self.made) < 6)
    @rule(
        n=st.integers(0, 9), threads=st.sampled_from([1, 1, 2, 3]),
        memory=st.sampled_from([None, None, GIB, 3 * GIB // 2, 3 * GIB]),
        resources=st.sampled_from([{}, {}, {"GPU": 1.0}, {"GPU": 0.5}, {"label": 1.0}]),
        tenant=st.sampled_from(["one", "two"]), user=st.sampled_from("ab"),
        kind=st.sampled_from([ClusterKind.USER, ClusterKind.USER, ClusterKind.USER, ClusterKind.JOB]), shared=st.booleans(),
    )  # fmt: skip
    def create(
        self, n: int, threads: int, memory: int | None, resources: dict[str, float], tenant: str, user: str,
        kind: ClusterKind, shared: bool,
    ) -> None:  # fmt: skip
        """Users of two tenants ask for clusters of fresh or shared processes. A job's has no attempt here, and soon ends."""
        request = new(
            f"c{len(self.made)}", n_workers=n, threads_per_worker=threads, memory_limit_bytes=memory, resources=resources,
            tenant=tenant, user=user, kind=kind, shared=shared, idle_timeout_s=None,
        )  # fmt: skip
        self.asked[request.cluster_id] = request
        with contextlib.suppress(ClusterImpossible, LedgerUnavailable):
            self.made.append(self.do(self.rig.controller.clusters.create(request)).cluster_id)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), n=st.integers(0, 9))
    def scale(self, data: st.DataObject, n: int) -> None:
        with contextlib.suppress(Conflict, LedgerUnavailable):
            self.do(self.rig.controller.clusters.scale(data.draw(st.sampled_from(self.made)), n))

    @precondition(lambda self: self.made and not self.rig.ledger.is_full)  # else it waits for the ledger
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        cluster_id = data.draw(st.sampled_from(self.made))
        self.closed.add(cluster_id)
        self.do(self.rig.controller.clusters.close(cluster_id, "closed"))

    # ------------------------------------------------------------------ what agents do, and what befalls them

    @rule(agent=st.sampled_from(sorted(SLOTS)), most=st.integers(1, 8))
    def work(self, agent: str, most: int) -> None:
        async def act() -> None:
            host = self.hosts[agent]
            if host.side is not None:
                frames, rest = host.side.frames[:most], host.side.frames[most:]
                host.side.frames[:] = rest
                for frame in frames:
                    host.do(frame)
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)))
    def hear_everything_twice(self, agent: str) -> None:
        async def act() -> None:
            host = self.hosts[agent]
            for frame in [frame for frame in host.take() for _ in range(2)]:
                host.do(frame)
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)))
    def lose_the_connection(self, agent: str) -> None:
        """With all frames that are under way."""

        async def act() -> None:
            self.hosts[agent].disconnect()
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)))
    def connect_again(self, agent: str) -> None:
        async def act() -> None:
            if self.hosts[agent].side is None:
                self.hosts[agent].connect()
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)))
    def kill_an_agent(self, agent: str) -> None:
        """All it ran dies with it; its successor has another id."""

        async def act() -> None:
            self.hosts[agent].disconnect()
            self.moved |= self.hosts[agent].moved
            self.generation += 1
            self.hosts[agent] = self.host(agent, f"{agent.partition('-')[0]}-{self.generation}")
            self.hosts[agent].connect()
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)), data=st.data())
    def kill_a_scheduler(self, agent: str, data: st.DataObject) -> None:
        async def act() -> None:
            host = self.hosts[agent]
            if host.schedulers:
                cluster, epoch = data.draw(st.sampled_from(sorted(host.schedulers)))
                host.end_scheduler(cluster, epoch, "killed")
                for other in self.hosts.values():  # its workers elsewhere find their scheduler gone
                    for lease, worker in list(other.workers.items()):
                        if (worker.frame.cluster, worker.frame.epoch) == (cluster, epoch):
                            other.lose_worker(lease, "its scheduler is gone")
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)), data=st.data())
    def kill_a_worker(self, agent: str, data: st.DataObject) -> None:
        async def act() -> None:
            host = self.hosts[agent]
            if host.workers:
                host.lose_worker(data.draw(st.sampled_from(sorted(host.workers))))
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)), joins=st.booleans())
    def joining_hangs(self, agent: str, joins: bool) -> None:
        """Workers there find schedulers busy, or not any more."""

        async def act() -> None:
            self.hosts[agent].joins = joins
            self.hosts[agent].join()
            await self.rig.settle()

        self.do(act())

    @rule(agent=st.sampled_from(sorted(SLOTS)), failed=st.booleans())
    def none_of_them_joins(self, agent: str, failed: bool) -> None:
        """All workers there that have not joined end, for a reason of their own or for another one."""

        async def act() -> None:
            host = self.hosts[agent]
            for lease, worker in list(host.workers.items()):
                if not worker.joined:
                    self.failed[worker.frame.cluster] += failed
                    host.lose_worker(lease, "it could not join", failed=failed)
            await self.rig.settle()

        self.do(act())

    @precondition(lambda self: self.made and not self.rig.ledger.is_full)
    @rule(data=st.data(), failed=st.booleans())
    def grow_in_vain(self, data: st.DataObject, failed: bool) -> None:
        """A cluster is to grow, and for some time no worker can join, in one round after the other."""
        for host in self.hosts.values():
            host.joins = False
        with contextlib.suppress(Conflict):
            self.do(self.rig.controller.clusters.scale(data.draw(st.sampled_from(self.made)), 9))
        for _ in range(3):
            self.let_all_work()
            for agent in SLOTS:
                self.none_of_them_joins(agent, failed)
            self.time_passes(16.0)
        for agent in SLOTS:
            self.joining_hangs(agent, joins=True)

    @rule(agent=st.sampled_from(sorted(SLOTS)), how=st.sampled_from(["moves", "waits", "fits nowhere"]))
    def data_of_those_that_leave(self, agent: str, how: str) -> None:
        """What becomes of the data that the schedulers of an agent are to move."""
        self.hosts[agent].retires = how != "waits"
        self.hosts[agent].kept = FITS_NOWHERE if how == "fits nowhere" else {}

    # ------------------------------------------------------------------ what befalls the server

    @rule(seconds=st.sampled_from([0.5, 2.0, 16.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(self.rig.advance(seconds))

    @rule()
    def restart_the_server(self) -> None:
        """As after ``kill -9``: whatever it had not recorded is forgotten."""

        async def act() -> None:
            for host in self.hosts.values():
                host.side = None
            await self.rig.__aexit__(None, None, None)

        self.do(act())
        self.rig.ledger.is_full = False
        self.start(self.rig.ledger)
        for host in self.hosts.values():
            host.rig = self.rig

    @rule(is_full=st.booleans())
    def the_disk_fills(self, is_full: bool) -> None:
        self.rig.ledger.is_full = is_full

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def no_slot_is_held_twice(self) -> None:
        if not self.hosts:
            return
        leases = self.do(self.rig.ledger.slot_leases())
        lent: dict[str, int] = {}
        for lease in leases:
            lent[lease.agent] = lent.get(lease.agent, 0) + lease.threads
        for agent, threads in lent.items():
            assert threads <= SLOTS[agent.partition("-")[0] + "-a"], "the ledger has lent more than there is"
        for host in self.hosts.values():
            assert sum(worker.frame.slots for worker in host.workers.values()) <= host.slots, "an agent runs more"
        names = [(lease.cluster_id, lease.worker) for lease in leases]
        assert len(names) == len(set(names))

    @invariant()
    def no_resource_is_lent_twice(self) -> None:
        if not self.hosts:
            return
        lent: Counter[str] = Counter()
        for lease in self.do(self.rig.ledger.slot_leases()):
            lent[lease.agent] += self.asked[lease.cluster_id].spec.resources.get("GPU", 0)  # type: ignore[assignment]
        for agent, host in self.hosts.items():
            if GPUS[agent]:
                assert lent[host.agent_id] <= GPUS[agent], "the ledger has lent more resources than there are"
                assert sum(worker.frame.resources.get("GPU", 0) for worker in host.workers.values()) <= GPUS[agent]

    @invariant()
    def processes_are_shared_within_a_tenant_only(self) -> None:
        """A worker is its cluster's tenant's, on every agent; a user's own is in a fresh process, whatever happened."""
        for host in self.hosts.values():
            for worker in host.workers.values():
                frame = worker.frame
                asked = self.asked[frame.cluster]
                assert frame.tenant == asked.tenant
                assert frame.fresh or asked.kind is ClusterKind.JOB or asked.spec.shared

    @invariant()
    def what_has_ended_holds_nothing(self) -> None:
        if not self.hosts:
            return
        for record in self.do(self.rig.ledger.clusters(living=False)):
            held = self.do(self.rig.ledger.slot_leases(cluster_id=record.cluster_id))
            if record.state is ClusterState.CLOSED:
                assert held == []

    def teardown(self) -> None:
        """Let everything come to rest: nothing is lost, all that is wanted is there, and all slots come back."""
        try:
            if self.hosts:
                self.come_to_rest()
        finally:
            self.end()

    def end(self) -> None:
        if self.hosts:
            self.do(self.rig.__aexit__(None, None, None))
        self.loop.close()

    def use_all_slots(self) -> None:
        """Lend every slot there is, with the agents at work."""
        self.made = [self.ask(new(f"all{len(self.made)}", n_workers=9))]
        self.let_all_work()

    def ask(self, request: NewCluster) -> str:
        self.asked[request.cluster_id] = request
        return self.do(self.rig.controller.clusters.create(request)).cluster_id  # type: ignore[no-any-return]

    def let_all_work(self) -> None:
        for _ in range(3):
            for agent in SLOTS:
                self.work(agent, 100)

    def come_to_rest(self) -> None:
        self.rig.ledger.is_full = False
        clusters, hosts = self.rig.controller.clusters, list(self.hosts.values())

        async def act() -> None:
            for host in hosts:
                host.joins, host.retires, host.kept = True, True, {}
                if host.side is None:
                    host.connect()
                host.join()

        self.do(act())
        self.until_rest(hosts)
        records = self.do(self.rig.ledger.clusters())
        for record in records:
            assert record.state in {ClusterState.RUNNING, ClusterState.PENDING}, record
        self.nothing_was_closed_or_taken_unasked()
        slots = sum(host.slots for host in hosts)
        for record in records:
            view = clusters.status(record)
            assert view.workers <= record.spec.n_workers, "those that were to leave could"
            assert view.workers == record.spec.n_workers or view.waiting_for, "it has its workers, or says what it waits for"
        sizes = {record.cluster_id: slots_of(record.spec) for record in records}
        wanted = sum(record.spec.n_workers * sizes[record.cluster_id] for record in records)
        there = slots if all(size == 1 for size in sizes.values()) else min(SLOTS.values())
        if wanted <= there and not any("GPU" in record.spec.resources for record in records):
            for record in records:
                assert clusters.status(record).workers == record.spec.n_workers, "nothing is in its way"
        assert all(host.side is not None and host.side.handle.leased <= host.slots for host in hosts)
        for cluster_id in self.made:
            self.do(clusters.close(cluster_id, "the end"))
        self.until_rest(hosts)
        assert self.do(self.rig.ledger.slot_leases()) == []
        assert self.do(self.rig.ledger.clusters()) == []
        assert [len(host.workers) + len(host.schedulers) for host in hosts] == [0] * len(hosts)
        assert sum(handle.free for handle in self.rig.controller.agents) == slots, "a slot is lost"
        assert clusters.book.entries == {}
        assert clusters.book.lease_of == {}

    def nothing_was_closed_or_taken_unasked(self) -> None:
        """What no rule has closed lives, or has ended for something that did happen to it and cost nobody's data; and a
        worker that was to leave has left when its data was safe, or had joined no scheduler.
        """
        moved = self.moved.union(*(host.moved for host in self.hosts.values()))
        for cluster_id in self.made:
            record = self.do(self.rig.ledger.get_cluster(cluster_id))
            story = self.do(self.rig.ledger.cluster_events(cluster_id))
            joined = {(event.epoch, event.data["worker"]) for event in story if event.kind is ClusterEventKind.SLOTS_JOINED}
            for event in story:
                if event.kind is ClusterEventKind.SLOTS_LEAVING and event.data["reason"] == "scaled down":
                    worker = (event.epoch, event.data["worker"])
                    assert worker not in joined or (cluster_id, *worker) in moved, "it was taken with its data"
            if record.state in LIVING or cluster_id in self.closed or record.kind is ClusterKind.JOB:
                continue
            kinds = Counter(event.kind for event in story)
            if "its workers cannot start" in record.reason:
                assert self.failed[cluster_id] >= MOST_ROUNDS, f"closed for nothing: {record.reason}"
                assert record.epoch not in {epoch for epoch, _ in joined}, "closed with its data"
            elif "its scheduler was lost" in record.reason:
                assert kinds[ClusterEventKind.SCHEDULER_LOST] > MOST_LOSSES, record
            else:
                assert "fits on no agent" in record.reason, record
                assert not kinds[ClusterEventKind.OPENING], record

    def until_rest(self, hosts: list[Host]) -> None:
        for _ in range(8):
            self.do(work(self.rig, *hosts))
            self.do(self.rig.advance(16.0))
        self.do(work(self.rig, *hosts))


def slots_of(spec: ClusterSpec) -> int:
    """Return how many slots a worker takes: for its threads, or for its memory."""
    return max(spec.threads_per_worker, -(-(spec.memory_limit_bytes or 0) // GIB))


QUICK = settings(
    max_examples=300 if FULL else 16, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip


def test_slots_whatever_happens() -> None:
    run_state_machine_as_test(SlotMachine, settings=QUICK)


@pytest.fixture
def machine() -> Iterator[SlotMachine]:
    """One that is driven by hand, for a broken twin."""
    made = SlotMachine()
    try:
        made.begin()
        yield made
    finally:
        made.end()


def test_the_machine_sees_slots_that_are_given_out_twice(machine: SlotMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken twin: leases are not counted once they are leaving."""
    is_now = Keeper._is_now

    def broken(self: Keeper, entry: Entry, held: Held, lease: SlotLease | None) -> None:
        is_now(self, entry, held, lease)
        if held.lease.state is SlotLeaseState.LEAVING:
            self._book.release(entry, held)

    monkeypatch.setattr(Keeper, "_is_now", broken)
    machine.use_all_slots()
    machine.no_slot_is_held_twice()
    for cluster_id in machine.made:
        machine.do(machine.rig.controller.clusters.close(cluster_id, ""))
    machine.ask(new("second", n_workers=9))
    machine.rest()  # agents have not let go of the first one's yet
    with pytest.raises(AssertionError, match="more"):
        machine.no_slot_is_held_twice()


def test_the_machine_sees_resources_that_are_lent_twice(machine: SlotMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken twin: what workers have of them is not counted."""
    machine.made = [machine.ask(new("one", n_workers=9, resources={"GPU": 1.0}))]
    machine.let_all_work()
    machine.no_resource_is_lent_twice()
    monkeypatch.setattr(Book, "resources_left", lambda _, handle: dict(handle.resources))
    machine.made.append(machine.ask(new("two", n_workers=9, resources={"GPU": 1.0})))
    machine.let_all_work()
    with pytest.raises(AssertionError, match="more resources"):
        machine.no_resource_is_lent_twice()


def test_the_machine_sees_a_cluster_that_is_closed_for_nothing(
    machine: SlotMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken twin, as it once was: six workers that end before they have joined close it, whatever they died of."""
    stillborn: Counter[str] = Counter()

    def broken(_: Keeper, entry: Entry, held: Held, why: str) -> None:
        stillborn[entry.record.cluster_id] += held.lease.state is SlotLeaseState.GRANTED
        if stillborn[entry.record.cluster_id] >= 6:
            entry.close_reason = f"its workers cannot start: {why}"

    monkeypatch.setattr(Keeper, "_note_setback", broken)
    machine.joining_hangs("two-a", joins=False)
    machine.joining_hangs("big-a", joins=False)
    machine.use_all_slots()
    machine.nothing_was_closed_or_taken_unasked()
    machine.kill_an_agent("two-a")
    machine.none_of_them_joins("big-a", failed=False)
    with pytest.raises(AssertionError, match="closed for nothing"):
        machine.come_to_rest()


def test_the_machine_sees_workers_that_are_taken_with_their_data(
    machine: SlotMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken twin: those that are to leave are not waited for."""

    def broken(_: Keeper, entry: Entry, now: float) -> None:
        for held in entry.retiring:
            held.retired = True

    monkeypatch.setattr(Keeper, "_tell_retiring", broken)
    machine.use_all_slots()
    machine.do(machine.rig.controller.clusters.scale(machine.made[0], 2))
    with pytest.raises(AssertionError, match="taken with its data"):
        machine.come_to_rest()
