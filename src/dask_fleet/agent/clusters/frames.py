"""The frames between an agent, its scheduler processes and the memberships of its worker processes.

They travel as those of `protocol.frames` do: over a socket pair, each prefixed with its length (four bytes, big endian).
Every request names its cluster or membership by an id that the agent chooses; repeating a request is harmless.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.protocol.frames import Frame, WorkerBound

# ---------------------------------------------------------------- agent → scheduler process


class Open(Frame, frozen=True, kw_only=True):
    """Become the scheduler of this cluster; answered by `Opened` or `OpenFailed`. Only a spare can."""

    cluster: str
    credentials: Credentials
    host: str
    """Address to listen on, as workers and clients reach it; never a wildcard."""
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    """Dask's configuration for this cluster, nested or with dotted keys."""
    preloads: list[str] = msgspec.field(default_factory=list)
    idle_timeout_s: float | None = None
    dashboard: bool = False
    """On loopback."""
    allowed_failures: int | None = None
    """Worker deaths before Dask blames a task; ``None`` leaves it to Dask's configuration."""
    targets: list[str] = msgspec.field(default_factory=list)
    """Services whose modules graphs may name, files or modules; imported when a graph does."""
    for_job: bool = False
    """Dask's configuration is made for short graphs unless somebody says otherwise."""
    folder: str = ""
    """Where it may write; it makes it, and whoever opens it removes it. Without one it is where Dask's are."""
    report_s: float = 1.0
    """State is reported at most that often, and only when it has changed."""


class Renew(Frame, frozen=True):
    """Show this certificate from now on; `member` is the id of a membership, or of the cluster at its scheduler."""

    member: str
    credentials: Credentials


class Close(Frame, frozen=True):
    """End the cluster, or the spare; answered by `Closed` and the end of the process."""

    reason: str


class MoveData(Frame, frozen=True):
    """Copy what only these workers (by name) have to others, and give them no new tasks; answered by `DataMoved`."""

    request: int
    workers: list[str]


class LimitIdle(Frame, frozen=True):
    """Close when nothing was computed for so long from now on: a spare cluster has been handed out."""

    idle_timeout_s: float | None


SchedulerBound = Open | Renew | Close | MoveData | LimitIdle

# ---------------------------------------------------------------- scheduler process → agent


class Spare(Frame, frozen=True):
    """Ready to be opened."""

    versions: dict[str, str]
    """Of Python and the packages that must be equal throughout a cluster."""


class Opened(Frame, frozen=True):
    """The scheduler listens."""

    cluster: str
    address: str
    dashboard: str = ""
    """URL on this host's loopback, empty if there is none."""


class OpenFailed(Frame, frozen=True):
    """The scheduler could not be started; the process ends."""

    cluster: str
    error: str


class SchedulerState(Frame, frozen=True):
    """How the cluster does."""

    cluster: str
    workers: int
    threads: int
    tasks: int
    """In flight: at workers, queued, or waiting for a worker that could run them."""
    unrunnable: int
    """Of these, those that no present worker could run."""
    clients: int
    """Connected, those of workers not counted."""
    idle_us: int
    """Since when nothing is in flight, on the wall clock; 0 while something is."""
    lag_s: float
    """The longest its event loop was late since the last report."""


class Closed(Frame, frozen=True):
    """The cluster has ended; the process follows."""

    cluster: str
    reason: str


class DataMoved(Frame, frozen=True):
    """The names of the workers that can go without a loss."""

    request: int
    workers: list[str]
    kept: dict[str, str] = msgspec.field(default_factory=dict)
    """Those whose data could not be moved, and why."""


class Deaf(Frame, frozen=True):
    """Workers that a client restarts and that do not answer: their processes are to end, and others to come."""

    workers: list[str]
    """Their addresses."""


AgentBoundFromScheduler = Spare | Opened | OpenFailed | SchedulerState | Closed | DataMoved | Deaf

# ---------------------------------------------------------------- agent → worker process


class Join(Frame, frozen=True, kw_only=True):
    """Become a Dask worker of a cluster; answered by `Joined` or `Left`."""

    membership: str
    cluster: str
    scheduler: str
    """Its address: ``tls://…``."""
    credentials: Credentials
    host: str
    """Address to listen on for the other workers."""
    name: str
    """As Dask's clients see it; unique within the cluster."""
    nthreads: int
    memory_limit: int
    """That of the whole process, in bytes: Dask compares it with what the whole process has; 0 if there is none."""
    local_directory: str
    """Scratch; what the membership writes there is removed when it has left."""
    resources: dict[str, float] = msgspec.field(default_factory=dict)
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    """Dask's configuration for what the worker reads when it is made, and for the whole process where that is for this
    membership alone.
    """
    preloads: list[str] = msgspec.field(default_factory=list)
    """What the worker imports before it joins, as Dask's ``--preload``."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Variables to set before anything else; only where the process is for this membership alone."""
    timeout_s: float = 60.0
    """What its own start may take: preloads, plug-ins, its listener."""
    answer_s: float = 600.0
    """How long it asks the scheduler to take it, which may be busy with a large graph."""
    probe_s: float = 15.0
    """After each so long without an answer it looks whether it is refused, instead of not answered."""
    fresh: bool = False
    """Whether the process is this membership's alone: a restart by a client replaces it, and nanny plug-ins run in it."""


class Leave(Frame, frozen=True):
    """Stop being a worker; answered by `Left` and `Released`. Data that only this worker has is lost: retire it first."""

    membership: str


MembershipBound = Join | Leave | Renew

# ---------------------------------------------------------------- worker process → agent


class Joined(Frame, frozen=True):
    """The scheduler has taken the worker; sent again, with another address, after a restart by a client."""

    membership: str
    address: str


class Left(Frame, frozen=True):
    """No worker of the cluster any more: asked to, or the scheduler ended or died, or it could not join."""

    membership: str
    reason: str
    busy: int
    """Threads that tasks of it still hold; Dask cannot stop them."""
    failed: bool = False
    """It never joined."""
    unanswered: bool = False
    """It never joined because the scheduler did not answer, not for a reason of its own."""
    restart: bool = False
    """A client restarts it: it is to join again, from another process. Nothing follows; the process waits for its end."""


class Stragglers(Frame, frozen=True):
    """A client has restarted the worker, whose successor is there, and tasks of before go on in the same process."""

    membership: str
    busy: int
    """Threads that they hold; 0 when the last of them has ended."""


class Released(Frame, frozen=True):
    """The last task of it has ended: its slots are free. Always the last frame of a membership."""

    membership: str


AgentBoundFromMembership = Joined | Left | Stragglers | Released

decode_for_scheduler = msgspec.msgpack.Decoder(SchedulerBound).decode
decode_from_scheduler = msgspec.msgpack.Decoder(AgentBoundFromScheduler).decode
decode_from_membership = msgspec.msgpack.Decoder(AgentBoundFromMembership).decode
decode_for_member_process = msgspec.msgpack.Decoder(WorkerBound | MembershipBound | Close).decode
