"""The tables of clusters and slot leases: complete, without a way out of an end, and without a slot that is lost."""

from __future__ import annotations

import pytest

from dask_fleet.model.clusters import (
    CLUSTER_TRANSITIONS,
    SLOT_LEASE_TRANSITIONS,
    ClusterEvent,
    ClusterState,
    SlotLeaseEvent,
    SlotLeaseState,
    next_cluster_state,
    next_slot_lease_state,
)
from dask_fleet.model.errors import InvalidTransition


def test_no_event_leads_out_of_an_end() -> None:
    for state in ClusterState:
        if state.is_terminal:
            for event in ClusterEvent:
                with pytest.raises(InvalidTransition):
                    next_cluster_state(state, event)
    for lease in SlotLeaseState:
        if not lease.holds_slots:
            for happening in SlotLeaseEvent:
                with pytest.raises(InvalidTransition):
                    next_slot_lease_state(lease, happening)


def test_every_living_state_can_end() -> None:
    assert {state for state, _ in CLUSTER_TRANSITIONS} == {state for state in ClusterState if not state.is_terminal}
    for lease in SlotLeaseState:
        if lease.holds_slots:
            assert SLOT_LEASE_TRANSITIONS[lease, SlotLeaseEvent.LAPSE] is SlotLeaseState.LAPSED


def test_every_state_is_reached() -> None:
    assert {*CLUSTER_TRANSITIONS.values()} == {*ClusterState}
    assert {*SLOT_LEASE_TRANSITIONS.values(), SlotLeaseState.GRANTED} == {*SlotLeaseState}
