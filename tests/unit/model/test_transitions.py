"""The tables of everything that has states: one way to ask them, and none that invents a transition."""

from __future__ import annotations

import itertools
from enum import StrEnum
from typing import Any

import pytest

from dask_fleet.model.cluster_states import (
    CLUSTER_TRANSITIONS,
    SLOT_LEASE_TRANSITIONS,
    ClusterEvent,
    ClusterState,
    SlotLeaseEvent,
    SlotLeaseState,
)
from dask_fleet.model.errors import InvalidTransition
from dask_fleet.model.leases import LEASE_TRANSITIONS, LeaseEvent, LeaseState
from dask_fleet.model.states import RUN_TRANSITIONS, RunEvent, RunState
from dask_fleet.model.transitions import Transitions

TABLES = [
    pytest.param(RUN_TRANSITIONS, RunState, RunEvent, {s for s in RunState if s.is_terminal}, id="run"),
    pytest.param(LEASE_TRANSITIONS, LeaseState, LeaseEvent, {LeaseState.LAPSED, LeaseState.RELEASED}, id="lease"),
    pytest.param(CLUSTER_TRANSITIONS, ClusterState, ClusterEvent, {s for s in ClusterState if s.is_terminal}, id="cluster"),
    pytest.param(SLOT_LEASE_TRANSITIONS, SlotLeaseState, SlotLeaseEvent,
                 {s for s in SlotLeaseState if not s.holds_slots}, id="slot lease"),
]


@pytest.mark.parametrize(("table", "states", "events", "ends"), TABLES)
def test_a_table_allows_what_it_holds_and_nothing_else(
    table: Transitions[Any, Any], states: type[StrEnum], events: type[StrEnum], ends: set[StrEnum]
) -> None:
    assert {state for state, _ in table} == {*states} - ends  # no way out of an end, and one out of everything else
    assert {event for _, event in table} == {*events}
    for state, event in itertools.product(states, events):
        if (state, event) in table:
            assert table.next(state, event) is table[state, event]
        else:
            with pytest.raises(InvalidTransition, match=f"a {state} .* cannot take the event {event}"):
                table.next(state, event)


def test_a_table_does_not_change_with_what_it_was_made_of() -> None:
    made_of = {(LeaseState.HELD, LeaseEvent.LAPSE): LeaseState.LAPSED}
    table = Transitions("lease", made_of)
    made_of.clear()
    assert len(table) == 1
    assert table.next(LeaseState.HELD, LeaseEvent.LAPSE) is LeaseState.LAPSED
