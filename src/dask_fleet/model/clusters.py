"""What is asked for of a Dask cluster, and what the ledger remembers of it and of the slots it is lent."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from dask_fleet.model.cluster_states import ClusterEvent, ClusterEventKind, ClusterState, SlotLeaseState

DEFAULT_IDLE_TIMEOUT_S = 1_200.0
"""Twenty minutes: a coffee break with a notebook open, no night."""


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


class ClusterAccess(StrEnum):
    """Who may use, scale and close a cluster, besides the tenant's administrators. All of the tenant may look at it."""

    USER = "user"
    """Whose it is: who may use it can run code beside that user's, and read what it holds."""
    TENANT = "tenant"


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
    env: dict[str, str] = {}
    """Variables of each fresh worker process, set before anything of the user's is imported there."""
    memory_limit_bytes: int | None = None
    """Of each fresh worker process; ``None`` is the agent's."""
    scheduler_memory_limit_bytes: int | None = None
    """Of its scheduler process; ``None`` is the agent's."""
    dashboard: bool = True
    access: ClusterAccess = ClusterAccess.USER
    shared: bool = False
    """Its workers join processes that the tenant's jobs and its other shared clusters use too."""
    requested_as: str = ""
    """Of a spare that was handed out: the id that its request would have made, so that the request may be repeated."""


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
