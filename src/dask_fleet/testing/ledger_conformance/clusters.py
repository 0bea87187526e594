"""Clusters and the slots they are lent: tables, fences, guards, stories, restarts."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from dask_fleet.model.cluster_states import (
    CLUSTER_TRANSITIONS,
    SLOT_LEASE_TRANSITIONS,
    ClusterEvent,
    ClusterEventKind,
    ClusterState,
    SlotLeaseEvent,
    SlotLeaseState,
)
from dask_fleet.model.clusters import ClusterChange, ClusterKind, ClusterRecord, ClusterSpec, NewCluster, SlotLease
from dask_fleet.model.errors import Conflict
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import SECOND_US, LedgerMaker, ManualClock, scenario

_PATHS: dict[ClusterState, tuple[ClusterEvent, ...]] = {
    ClusterState.PENDING: (),
    ClusterState.STARTING: (ClusterEvent.OPEN,),
    ClusterState.RUNNING: (ClusterEvent.OPEN, ClusterEvent.OPENED),
    ClusterState.CLOSING: (ClusterEvent.CLOSE,),
    ClusterState.CLOSED: (ClusterEvent.CLOSE, ClusterEvent.CLOSED),
    ClusterState.FAILED: (ClusterEvent.FAIL,),
}

_SLOT_PATHS: dict[SlotLeaseState, tuple[SlotLeaseEvent, ...]] = {
    SlotLeaseState.GRANTED: (),
    SlotLeaseState.JOINED: (SlotLeaseEvent.JOINED,),
    SlotLeaseState.LEAVING: (SlotLeaseEvent.LEAVE,),
    SlotLeaseState.RELEASED: (SlotLeaseEvent.LEAVE, SlotLeaseEvent.LEFT),
    SlotLeaseState.LAPSED: (SlotLeaseEvent.LAPSE,),
}


def new_cluster(name: str = "c", **changes: Any) -> NewCluster:
    """Return a request for a cluster; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "cluster_id": f"cluster-{name}", "name": name, "tenant": "default", "user": "ada", "kind": ClusterKind.USER,
        "spec": ClusterSpec(n_workers=2, config={"distributed.scheduler.allowed-failures": 3}),
    }
    return NewCluster(**(fields | changes))


def change_of(record: ClusterRecord, event: ClusterEvent, **changes: Any) -> ClusterChange:
    """Return a change of the cluster's present epoch."""
    fields: dict[str, Any] = {"cluster_id": record.cluster_id, "epoch": record.epoch, "event": event}
    if event is ClusterEvent.OPEN:
        fields["agent"] = "a-1"
    if event is ClusterEvent.OPENED:
        fields |= {"address": "tls://h:1", "dashboard": "127.0.0.1:2", "ca": b"pem"}
    return ClusterChange(**(fields | changes))


async def in_state(ledger: Ledger, state: ClusterState, name: str = "c", **changes: Any) -> ClusterRecord:
    """Return a cluster that was led to a state."""
    record = await ledger.create_cluster(new_cluster(name, **changes))
    for event in _PATHS[state]:
        changed = await ledger.change_cluster(change_of(record, event))
        assert changed is not None
        record = changed
    assert record.state is state
    return record


def lease_of(record: ClusterRecord, number: int = 0, **changes: Any) -> SlotLease:
    """Return a lease of the cluster's present epoch."""
    fields: dict[str, Any] = {
        "lease_id": f"lease-{record.name}-{number}", "cluster_id": record.cluster_id, "epoch": record.epoch,
        "agent": "a-1", "worker": str(number), "threads": 2, "fresh": True,
    }
    return SlotLease(**(fields | changes))


class ClusterScenarios(LedgerMaker):
    """Created, opened, lost, scaled, handed out, closed; and slots granted, joined, left, lapsed."""

    @scenario
    async def test_a_cluster_is_recorded_as_asked(self, ledger: Ledger, clock: ManualClock) -> None:
        new = new_cluster(seq=7, attempt=2, kind=ClusterKind.JOB)
        record = await ledger.create_cluster(new)
        assert (record.state, record.epoch, record.agent) == (ClusterState.PENDING, 0, None)
        assert (record.spec, record.seq, record.attempt, record.kind) == (new.spec, 7, 2, ClusterKind.JOB)
        assert record.created_us == clock.now_us()
        assert await ledger.get_cluster(record.cluster_id) == record
        assert await ledger.get_cluster("cluster-nobody") is None
        (event,) = await ledger.cluster_events(record.cluster_id)
        assert (event.kind, event.epoch, event.at_us) == (ClusterEventKind.CREATED, 0, clock.now_us())
        assert event.data == {"by": "ada", "n_workers": 2}

    @scenario
    async def test_a_name_is_one_living_cluster_of_its_tenant(self, ledger: Ledger, clock: ManualClock) -> None:
        first = await in_state(ledger, ClusterState.CLOSING)
        with pytest.raises(Conflict, match="'c'"):
            await ledger.create_cluster(new_cluster(cluster_id="cluster-2"))
        await ledger.create_cluster(new_cluster(cluster_id="cluster-3", tenant="other"))
        assert await ledger.change_cluster(change_of(first, ClusterEvent.CLOSED)) is not None
        with pytest.raises(Conflict, match=first.cluster_id):
            await ledger.create_cluster(new_cluster(cluster_id=first.cluster_id))
        await ledger.create_cluster(new_cluster(cluster_id="cluster-4"))
        both = await asyncio.gather(
            *(ledger.create_cluster(new_cluster("d", cluster_id=f"cluster-{n}")) for n in (5, 6)), return_exceptions=True
        )
        assert [type(answer) for answer in both] == [ClusterRecord, Conflict]

    @scenario
    async def test_the_table_decides_for_every_state_and_event(self, ledger: Ledger, clock: ManualClock) -> None:
        for state in ClusterState:
            for event in ClusterEvent:
                record = await in_state(ledger, state, f"{state}-{event}")
                before = await ledger.cluster_events(record.cluster_id)
                changed = await ledger.change_cluster(change_of(record, event, reason="why"))
                expected = CLUSTER_TRANSITIONS.get((state, event))
                story = await ledger.cluster_events(record.cluster_id)
                if expected is None:
                    assert changed is None, (state, event)
                    assert await ledger.get_cluster(record.cluster_id) == record
                    assert story == before
                else:
                    assert changed is not None, (state, event)
                    assert changed.state is expected
                    assert await ledger.get_cluster(record.cluster_id) == changed
                    assert len(story) == len(before) + 1
                    assert story[-1].data["reason"] == "why"
                    assert story[-1].epoch == changed.epoch

    @scenario
    async def test_each_opening_counts_the_epoch_and_fences_the_one_before(self, ledger: Ledger, clock: ManualClock) -> None:
        record = await in_state(ledger, ClusterState.RUNNING)
        assert (record.epoch, record.agent, record.address) == (1, "a-1", "tls://h:1")
        assert (record.dashboard, record.ca, record.running_us) == ("127.0.0.1:2", b"pem", clock.now_us())
        lost = await ledger.change_cluster(change_of(record, ClusterEvent.SCHEDULER_LOST, reason="killed"))
        assert lost is not None
        assert (lost.state, lost.agent, lost.address, lost.ca, lost.reason) == (
            ClusterState.PENDING, None, "", b"", "killed")
        again = await ledger.change_cluster(change_of(lost, ClusterEvent.OPEN, agent="b-1"))
        assert again is not None
        assert (again.epoch, again.agent, again.state) == (2, "b-1", ClusterState.STARTING)
        for event in (ClusterEvent.OPENED, ClusterEvent.SCHEDULER_LOST, ClusterEvent.CLOSE):
            assert await ledger.change_cluster(change_of(record, event)) is None, "the zombie of epoch 1"
        assert await ledger.get_cluster(record.cluster_id) == again
        assert await ledger.grant_slots([lease_of(record)]) == []
        up = await ledger.change_cluster(change_of(again, ClusterEvent.OPENED))
        assert up is not None
        assert (up.reason, up.running_us) == ("", record.running_us)

    @scenario
    async def test_a_failed_cluster_says_why_and_when(self, ledger: Ledger, clock: ManualClock) -> None:
        record = await in_state(ledger, ClusterState.STARTING)
        clock.advance(3)
        failed = await ledger.change_cluster(change_of(record, ClusterEvent.FAIL, reason="no such slots"))
        assert failed is not None
        assert (failed.reason, failed.closed_us, failed.agent) == ("no such slots", clock.now_us(), None)

    @scenario
    async def test_scaling_changes_the_target_of_the_living(self, ledger: Ledger, clock: ManualClock) -> None:
        record = await in_state(ledger, ClusterState.RUNNING)
        scaled = await ledger.scale_cluster(record.cluster_id, 5)
        assert scaled == replace(record, spec=replace(record.spec, n_workers=5))
        assert await ledger.scale_cluster(record.cluster_id, 5) == scaled
        assert (await ledger.cluster_events(record.cluster_id))[-1].data == {"from": 2, "to": 5}
        assert len([e for e in await ledger.cluster_events(record.cluster_id) if e.kind is ClusterEventKind.SCALED]) == 1
        for state in (ClusterState.CLOSING, ClusterState.CLOSED, ClusterState.FAILED):
            ended = await in_state(ledger, state, str(state))
            assert await ledger.scale_cluster(ended.cluster_id, 1) is None
        assert await ledger.scale_cluster("cluster-nobody", 1) is None

    @scenario
    async def test_a_running_spare_is_handed_out_once(self, ledger: Ledger, clock: ManualClock) -> None:
        spare = await ledger.create_cluster(new_cluster("spare", kind=ClusterKind.SPARE, user=""))
        spec = ClusterSpec(n_workers=3)
        assert await ledger.adopt_spare(spare.cluster_id, name="x", user="bob", spec=spec) is None, "it does not run yet"
        for event in _PATHS[ClusterState.RUNNING]:
            changed = await ledger.change_cluster(change_of(spare, event))
            assert changed is not None
            spare = changed
        await ledger.create_cluster(new_cluster("taken"))
        with pytest.raises(Conflict):
            await ledger.adopt_spare(spare.cluster_id, name="taken", user="bob", spec=spec)
        clock.advance(60)
        mine = await ledger.adopt_spare(spare.cluster_id, name="x", user="bob", spec=spec)
        assert mine is not None
        assert (mine.kind, mine.name, mine.user, mine.spec) == (ClusterKind.USER, "x", "bob", spec)
        assert (mine.state, mine.epoch, mine.created_us) == (ClusterState.RUNNING, spare.epoch, clock.now_us())
        assert await ledger.adopt_spare(spare.cluster_id, name="y", user="eve", spec=spec) is None
        assert (await ledger.cluster_events(spare.cluster_id))[-1].kind is ClusterEventKind.ADOPTED

    @scenario
    async def test_a_request_gets_one_cluster_also_if_it_was_a_spare(self, ledger: Ledger, clock: ManualClock) -> None:
        """Whether its cluster was made for it or handed out, and whether that lives or has ended: repeated it is refused."""
        await in_state(ledger, ClusterState.CLOSED, "made")
        spares = [
            await in_state(ledger, ClusterState.RUNNING, name, kind=ClusterKind.SPARE, user="") for name in ("one", "two")
        ]

        async def adopt(spare: ClusterRecord, request: str) -> ClusterRecord | None:
            spec = ClusterSpec(n_workers=1, requested_as=request)
            return await ledger.adopt_spare(spare.cluster_id, name=spare.name, user="bob", spec=spec)

        with pytest.raises(Conflict):
            await adopt(spares[0], "cluster-made")
        mine = await adopt(spares[0], "request")
        assert mine is not None
        for _ in ("living", "ended"):
            assert await ledger.get_cluster("request") == mine
            with pytest.raises(Conflict):
                await adopt(spares[1], "request")
            with pytest.raises(Conflict):
                await ledger.create_cluster(new_cluster("again", cluster_id="request"))
            assert (await ledger.get_cluster("cluster-two")) == spares[1]
            for event in _PATHS[ClusterState.CLOSED] if mine.closed_us is None else ():
                mine = await ledger.change_cluster(change_of(mine, event))
                assert mine is not None
        assert await ledger.get_cluster("") is None
        clock.advance(10)
        assert await ledger.purge_clusters(ended_before_us=clock.now_us()) == 2
        assert await ledger.get_cluster("request") is None
        assert await adopt(spares[1], "request") is not None

    @scenario
    async def test_listings_are_newest_first_and_of_one_tenant(self, ledger: Ledger, clock: ManualClock) -> None:
        for name in ("a", "b", "c"):
            await in_state(ledger, ClusterState.CLOSED if name == "b" else ClusterState.PENDING, name)
            clock.advance(1)
        await ledger.create_cluster(new_cluster("z", tenant="other"))

        async def names(**which: Any) -> list[str]:
            return [record.name for record in await ledger.clusters(**which)]

        assert await names() == ["z", "c", "a"]
        assert await names(tenant="default") == ["c", "a"]
        assert await names(tenant="default", living=False) == ["c", "b", "a"]
        assert await names(living=False) == ["z", "c", "b", "a"]
        assert await names(living=False, limit=2) == ["z", "c"]
        assert await names(tenant="nobody", living=False) == []

    @scenario
    async def test_slots_are_granted_all_or_none_and_only_once(self, ledger: Ledger, clock: ManualClock) -> None:
        running = await in_state(ledger, ClusterState.RUNNING)
        pending = await in_state(ledger, ClusterState.PENDING, "p")
        one, two = lease_of(running, 0), lease_of(running, 1)
        assert await ledger.grant_slots([one, lease_of(pending, 0)]) == []
        assert await ledger.slot_leases() == []
        granted = await ledger.grant_slots([one, two])
        assert granted == [replace(lease, granted_us=clock.now_us()) for lease in (one, two)]
        assert await ledger.slot_leases() == granted
        assert await ledger.slot_leases(cluster_id=running.cluster_id) == granted
        assert await ledger.slot_leases(cluster_id=pending.cluster_id) == []
        story = await ledger.cluster_events(running.cluster_id)
        assert story[-1].data == {"agent": "a-1", "worker": "1", "threads": 2}
        three = lease_of(running, 3)
        for again in ([one], [replace(three, lease_id=one.lease_id)], [replace(three, worker="1")], [three, three]):
            assert await ledger.grant_slots(again) == []
        assert await ledger.grant_slots([]) == []
        assert await ledger.cluster_events(running.cluster_id) == story

    @scenario
    async def test_the_table_of_slots_decides(self, ledger: Ledger, clock: ManualClock) -> None:
        record = await in_state(ledger, ClusterState.RUNNING)
        number = 0
        for state in SlotLeaseState:
            for event in SlotLeaseEvent:
                lease = lease_of(record, number)
                number += 1
                (lease,) = await ledger.grant_slots([lease])
                for step in _SLOT_PATHS[state]:
                    changed = await ledger.change_slots(lease.lease_id, step)
                    assert changed is not None
                    lease = changed
                expected = SLOT_LEASE_TRANSITIONS.get((state, event))
                before = len(await ledger.cluster_events(record.cluster_id))
                changed = await ledger.change_slots(lease.lease_id, event, reason="why")
                after = len(await ledger.cluster_events(record.cluster_id))
                assert (changed and changed.state) == expected, (state, event)
                assert after - before == (expected is not None)
                held = await ledger.slot_leases(cluster_id=record.cluster_id)
                assert (lease.lease_id in {each.lease_id for each in held}) == (expected or state).holds_slots
        assert await ledger.change_slots("lease-nobody", SlotLeaseEvent.LEAVE) is None
        assert len(await ledger.slot_leases(ended=True)) == number
        assert len(await ledger.slot_leases(cluster_id=record.cluster_id, ended=True)) == number

    @scenario
    async def test_no_cluster_is_closed_while_it_holds_slots(self, ledger: Ledger, clock: ManualClock) -> None:
        record = await in_state(ledger, ClusterState.RUNNING)
        (lease,) = await ledger.grant_slots([lease_of(record)])
        closing = await ledger.change_cluster(change_of(record, ClusterEvent.CLOSE))
        assert closing is not None
        assert closing.agent == "a-1", "its scheduler is still to be ended"
        assert await ledger.change_cluster(change_of(closing, ClusterEvent.CLOSED)) is None
        await ledger.change_slots(lease.lease_id, SlotLeaseEvent.LEAVE)
        assert await ledger.change_cluster(change_of(closing, ClusterEvent.CLOSED)) is None
        await ledger.change_slots(lease.lease_id, SlotLeaseEvent.LEFT)
        closed = await ledger.change_cluster(change_of(closing, ClusterEvent.CLOSED))
        assert closed is not None
        assert (closed.state, closed.agent, closed.closed_us) == (ClusterState.CLOSED, None, clock.now_us())

    @scenario
    async def test_everything_is_there_after_a_restart(self, ledger: Ledger, clock: ManualClock) -> None:
        record = await in_state(ledger, ClusterState.RUNNING)
        (lease,) = await ledger.grant_slots([lease_of(record)])
        story = await ledger.cluster_events(record.cluster_id)
        again = await self.reopened(ledger, clock)
        try:
            assert await again.clusters() == [record]
            assert await again.slot_leases() == [lease]
            assert await again.cluster_events(record.cluster_id) == story
            assert await again.change_slots(lease.lease_id, SlotLeaseEvent.JOINED) is not None
            ids = [event.event_id for event in await again.cluster_events(record.cluster_id)]
            assert ids == sorted(set(ids))
        finally:
            await again.close()
            await ledger.open()

    @scenario
    async def test_ended_clusters_are_purged_with_all_that_was_theirs(self, ledger: Ledger, clock: ManualClock) -> None:
        for name in ("a", "b"):
            record = await in_state(ledger, ClusterState.RUNNING, name)
            (lease,) = await ledger.grant_slots([lease_of(record)])
            if name == "b":
                await ledger.change_slots(lease.lease_id, SlotLeaseEvent.LAPSE)
            for event in (ClusterEvent.SCHEDULER_LOST, ClusterEvent.FAIL):
                changed = await ledger.change_cluster(change_of(record, event))
                assert changed is not None
                record = changed
        living = await in_state(ledger, ClusterState.RUNNING, "c")
        assert await ledger.purge_clusters(ended_before_us=clock.now_us()) == 0
        before_us = clock.now_us() + SECOND_US
        assert await ledger.purge_clusters(ended_before_us=before_us) == 1, "the slots of one are not back yet"
        assert {record.name for record in await ledger.clusters(living=False)} == {"a", living.name}
        assert await ledger.cluster_events("cluster-b") == []
        assert [lease.cluster_id for lease in await ledger.slot_leases(ended=True)] == ["cluster-a"]
        await ledger.change_slots("lease-a-0", SlotLeaseEvent.LAPSE)
        assert await ledger.purge_clusters(ended_before_us=before_us, limit=5) == 1
        assert await ledger.slot_leases(ended=True) == []
