"""Dask clusters and the slots they are lent: states, events, and the only tables that say which leads where.

A *cluster* is a Dask scheduler plus leased slots of worker processes::

                OPEN             OPENED
     pending ─────────▶ starting ───────▶ running
        ▲  SCHEDULER_LOST │                 │
        └─────────────────┴─────────────────┘        each OPEN counts the epoch up: the fence of all that is said of it
        │ FAIL            │ CLOSE (from all three)
        ▼                 ▼        CLOSED
      failed           closing ───────────▶ closed

A *slot lease* is what one agent lends to one cluster: one Dask worker of some threads. Its slots are counted as taken
from the grant until its end, so that none is ever held twice::

                JOINED            LEAVE              LEFT
     granted ─────────▶ joined ─────────▶ leaving ─────────▶ released
        │ │               │                  ▲ │
        │ └───────────────┼──────────────────┘ │      LEAVE of one that never joined
        └─────────────────┴────────────────────┴─▶ lapsed    LAPSE: the agent or its processes are gone
"""

from __future__ import annotations

from enum import StrEnum

from dask_fleet.model.transitions import Transitions


class ClusterState(StrEnum):
    """Where a cluster stands."""

    PENDING = "pending"
    """Recorded; no agent has been asked for its scheduler yet, or the last scheduler is lost."""
    STARTING = "starting"
    """An agent was told to open the scheduler."""
    RUNNING = "running"
    """The scheduler answers; workers come and go."""
    CLOSING = "closing"
    """Its workers are leaving, its scheduler is ending."""
    CLOSED = "closed"
    FAILED = "failed"
    """It could not be had; the record says why."""

    @property
    def is_terminal(self) -> bool:
        """Whether it will never run again."""
        return self in {ClusterState.CLOSED, ClusterState.FAILED}


class ClusterEvent(StrEnum):
    """What can happen to a cluster."""

    OPEN = "open"
    OPENED = "opened"
    SCHEDULER_LOST = "scheduler_lost"
    CLOSE = "close"
    CLOSED = "closed"
    FAIL = "fail"


CLUSTER_TRANSITIONS = Transitions(
    "cluster",
    {
        (ClusterState.PENDING, ClusterEvent.OPEN): ClusterState.STARTING,
        (ClusterState.STARTING, ClusterEvent.OPENED): ClusterState.RUNNING,
        (ClusterState.STARTING, ClusterEvent.SCHEDULER_LOST): ClusterState.PENDING,
        (ClusterState.RUNNING, ClusterEvent.SCHEDULER_LOST): ClusterState.PENDING,
        (ClusterState.PENDING, ClusterEvent.CLOSE): ClusterState.CLOSING,
        (ClusterState.STARTING, ClusterEvent.CLOSE): ClusterState.CLOSING,
        (ClusterState.RUNNING, ClusterEvent.CLOSE): ClusterState.CLOSING,
        (ClusterState.CLOSING, ClusterEvent.CLOSED): ClusterState.CLOSED,
        (ClusterState.PENDING, ClusterEvent.FAIL): ClusterState.FAILED,
        (ClusterState.STARTING, ClusterEvent.FAIL): ClusterState.FAILED,
    },
)


class SlotLeaseState(StrEnum):
    """Where a slot lease stands."""

    GRANTED = "granted"
    """The agent was told to let the worker join."""
    JOINED = "joined"
    LEAVING = "leaving"
    """Its worker is leaving; tasks that do not end keep their slots counted."""
    RELEASED = "released"
    LAPSED = "lapsed"

    @property
    def holds_slots(self) -> bool:
        """Whether its slots are taken."""
        return self in {SlotLeaseState.GRANTED, SlotLeaseState.JOINED, SlotLeaseState.LEAVING}


class SlotLeaseEvent(StrEnum):
    """What can happen to a slot lease."""

    JOINED = "joined"
    LEAVE = "leave"
    LEFT = "left"
    LAPSE = "lapse"


SLOT_LEASE_TRANSITIONS = Transitions(
    "slot lease",
    {
        (SlotLeaseState.GRANTED, SlotLeaseEvent.JOINED): SlotLeaseState.JOINED,
        (SlotLeaseState.GRANTED, SlotLeaseEvent.LEAVE): SlotLeaseState.LEAVING,
        (SlotLeaseState.JOINED, SlotLeaseEvent.LEAVE): SlotLeaseState.LEAVING,
        (SlotLeaseState.LEAVING, SlotLeaseEvent.LEFT): SlotLeaseState.RELEASED,
        (SlotLeaseState.GRANTED, SlotLeaseEvent.LAPSE): SlotLeaseState.LAPSED,
        (SlotLeaseState.JOINED, SlotLeaseEvent.LAPSE): SlotLeaseState.LAPSED,
        (SlotLeaseState.LEAVING, SlotLeaseEvent.LAPSE): SlotLeaseState.LAPSED,
    },
)


class ClusterEventKind(StrEnum):
    """What an event of a cluster's story says, in the past tense."""

    CREATED = "created"
    OPENING = "opening"
    OPENED = "opened"
    SCHEDULER_LOST = "scheduler_lost"
    SCALED = "scaled"
    ADOPTED = "adopted"
    """A spare was handed out as a user's cluster."""
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"
    SLOTS_GRANTED = "slots_granted"
    SLOTS_JOINED = "slots_joined"
    SLOTS_LEAVING = "slots_leaving"
    SLOTS_RELEASED = "slots_released"
    SLOTS_LAPSED = "slots_lapsed"
