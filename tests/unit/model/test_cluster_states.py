"""The tables of clusters and slot leases: every state is reached, and no slot is lost."""

from __future__ import annotations

from dask_fleet.model.cluster_states import (
    CLUSTER_TRANSITIONS,
    SLOT_LEASE_TRANSITIONS,
    ClusterState,
    SlotLeaseEvent,
    SlotLeaseState,
)


def test_every_lease_that_holds_slots_can_lapse() -> None:
    for lease in SlotLeaseState:
        if lease.holds_slots:
            assert SLOT_LEASE_TRANSITIONS[lease, SlotLeaseEvent.LAPSE] is SlotLeaseState.LAPSED


def test_every_state_is_reached() -> None:
    assert {*CLUSTER_TRANSITIONS.values()} == {*ClusterState}
    assert {*SLOT_LEASE_TRANSITIONS.values(), SlotLeaseState.GRANTED} == {*SlotLeaseState}
