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

import msgspec

from dask_fleet.model.errors import InvalidTransition

DEFAULT_IDLE_TIMEOUT_S = 1_200.0
"""Twenty minutes: a coffee break with a notebook open, no night."""


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


CLUSTER_TRANSITIONS: dict[tuple[ClusterState, ClusterEvent], ClusterState] = {
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
}


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


SLOT_LEASE_TRANSITIONS: dict[tuple[SlotLeaseState, SlotLeaseEvent], SlotLeaseState] = {
    (SlotLeaseState.GRANTED, SlotLeaseEvent.JOINED): SlotLeaseState.JOINED,
    (SlotLeaseState.GRANTED, SlotLeaseEvent.LEAVE): SlotLeaseState.LEAVING,
    (SlotLeaseState.JOINED, SlotLeaseEvent.LEAVE): SlotLeaseState.LEAVING,
    (SlotLeaseState.LEAVING, SlotLeaseEvent.LEFT): SlotLeaseState.RELEASED,
    (SlotLeaseState.GRANTED, SlotLeaseEvent.LAPSE): SlotLeaseState.LAPSED,
    (SlotLeaseState.JOINED, SlotLeaseEvent.LAPSE): SlotLeaseState.LAPSED,
    (SlotLeaseState.LEAVING, SlotLeaseEvent.LAPSE): SlotLeaseState.LAPSED,
}


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


class ClusterEventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a cluster's story."""

    event_id: int
    """Ascending over the whole ledger."""
    epoch: int
    kind: ClusterEventKind
    at_us: int
    data: dict[str, object] = {}


class ClusterKind(StrEnum):
    """For whom a cluster is."""

    USER = "user"
    """Somebody's own (`FleetCluster`): fresh worker processes, ended with it."""
    JOB = "job"
    """One attempt's: workers in processes that the tenant's other jobs use too."""
    SPARE = "spare"
    """Nobody's yet: kept ready for a tenant that is active, handed out as a user's cluster."""


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: the target, changed by scaling only."""

    n_workers: int
    """Dask workers."""
    threads_per_worker: int = 1
    resources: dict[str, float] = {}
    """Of each worker, as in ``distributed``."""
    pool: str = "default"
    idle_timeout_s: float | None = DEFAULT_IDLE_TIMEOUT_S
    """Without a task and without a client's call for so long it is closed; ``None`` never."""
    max_lifetime_s: float | None = None
    shutdown_on_close: bool = True
    config: dict[str, object] = {}
    """Dask configuration of its scheduler and workers: JSON values by dotted key."""
    preload: tuple[str, ...] = ()
    """Modules the workers import before they join, as Dask's ``--preload``."""
    scheduler_preload: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None
    """Of each fresh worker process; ``None`` is the agent's."""
    dashboard: bool = True


class NewCluster(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a cluster on its way into the ledger."""

    cluster_id: str
    name: str
    """Unique among the living clusters of its tenant."""
    tenant: str
    user: str
    kind: ClusterKind
    spec: ClusterSpec
    seq: int | None = None
    attempt: int | None = None
    """Of a job's cluster: whose it is."""


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster as the ledger remembers it. Its certificate authority's key is not in it: that lives with the agent."""

    cluster_id: str
    name: str
    tenant: str
    user: str
    kind: ClusterKind
    spec: ClusterSpec
    state: ClusterState
    epoch: int = 0
    """Number of the present scheduler process, counted from 1."""
    agent: str | None = None
    """Who runs the scheduler."""
    address: str = ""
    dashboard: str = ""
    """Address of the dashboard, on the scheduler's loopback; empty if it has none."""
    ca: bytes = b""
    """Certificate of the cluster's authority (PEM)."""
    seq: int | None = None
    attempt: int | None = None
    created_us: int = 0
    running_us: int | None = None
    closed_us: int | None = None
    reason: str = ""
    """Why it closed, failed or lost its scheduler."""


class ClusterChange(msgspec.Struct, frozen=True, kw_only=True):
    """One guarded, fenced change of a cluster."""

    cluster_id: str
    epoch: int
    """Which must be the present one; ``OPEN`` then counts it up."""
    event: ClusterEvent
    agent: str | None = None
    """With ``OPEN``."""
    address: str = ""
    dashboard: str = ""
    ca: bytes = b""
    """These three with ``OPENED``."""
    reason: str = ""


class SlotLease(msgspec.Struct, frozen=True, kw_only=True):
    """Slots of one worker process, lent to one cluster: one Dask worker of it."""

    lease_id: str
    cluster_id: str
    epoch: int
    """Of the scheduler that the worker joins: a new scheduler needs new leases."""
    agent: str
    worker: str
    """Name of the Dask worker, unique within its cluster over all epochs: ``0``, ``1``, …"""
    threads: int
    """Slots it takes of its agent while it holds any."""
    fresh: bool
    """A process of its own, ended with the lease, instead of a shared one."""
    state: SlotLeaseState = SlotLeaseState.GRANTED
    granted_us: int = 0
    reason: str = ""


def next_cluster_state(state: ClusterState, event: ClusterEvent) -> ClusterState:
    """Return the state after `event`.

    Raises
    ------
    InvalidTransition
        If the table has no such transition.
    """
    try:
        return CLUSTER_TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"a {state} cluster cannot take the event {event!s}") from None


def next_slot_lease_state(state: SlotLeaseState, event: SlotLeaseEvent) -> SlotLeaseState:
    """Return the state after `event`.

    Raises
    ------
    InvalidTransition
        If the table has no such transition.
    """
    try:
        return SLOT_LEASE_TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"a {state} slot lease cannot take the event {event!s}") from None
