"""The frames about Dask clusters, between server and agents.

Certificates cross the server, private keys never do: whoever joins a cluster makes its own key and asks for a signature.
The agent that runs the scheduler has the cluster's certificate authority and signs.

A scheduler process is named by ``(cluster, epoch)``, the fence; slots are named by their lease.
"""

from __future__ import annotations

import msgspec

from dask_fleet.protocol.frame import Frame

# ---------------------------------------------------------------- server → agent


class OpenCluster(Frame, frozen=True):
    """Take a scheduler process for this cluster; answered by `ClusterOpened` or `ClusterGone`. Repeating it is harmless.

    Repeated with another `idle_timeout_s`, it changes that: a spare cluster has been handed out.
    """

    cluster: str
    epoch: int
    tenant: str
    name: str
    config: dict[str, object] = {}
    preload: list[str] = []
    dashboard: bool = True
    idle_timeout_s: float | None = None
    memory_limit_bytes: int | None = None
    """Of the scheduler process; ``None`` is the agent's."""
    for_job: bool = False
    """It is a job's, whose graphs are short; a user's own, or a spare for one, is as Dask configures it."""


class CloseCluster(Frame, frozen=True):
    """End the scheduler process; answered by `ClusterGone`."""

    cluster: str
    epoch: int


class Sign(Frame, frozen=True):
    """Sign a certificate request (PEM) for a member of the cluster; answered by `Signed`."""

    request: int
    cluster: str
    epoch: int
    role: str
    """``worker`` or ``client``; Dask does not check it, people reading a certificate do."""
    csr: bytes


class GrantSlots(Frame, frozen=True):
    """Let one Dask worker join the cluster; answered by `SlotsJoined`, later by `SlotsLeft`. Repeating it is harmless.

    Where `address` is empty, the scheduler is opened by this same agent: the worker joins when it is there.
    """

    lease: str
    cluster: str
    epoch: int
    tenant: str
    worker: str
    """Its name."""
    threads: int
    fresh: bool
    address: str = ""
    ca: bytes = b""
    resources: dict[str, float] = {}
    config: dict[str, object] = {}
    preload: list[str] = []
    memory_limit_bytes: int | None = None
    env: dict[str, str] = {}
    """Variables of a fresh process; a shared one, which others use as well, has none of them."""
    slots: int = 0
    """What it takes of the agent: as many as threads, or more for its memory. 0: as many as threads."""


class TakeSlots(Frame, frozen=True):
    """Let the worker of a lease leave; answered by `SlotsLeft`. One that is unknown is answered at once.

    The scheduler has retired it before, so that its data has moved; tasks still running get `grace_s`, then their process is
    replaced. With none, a fresh process is killed without asking.
    """

    lease: str
    grace_s: float = 10.0


class RetireWorkers(Frame, frozen=True):
    """Let the scheduler move the data of these workers (by name) elsewhere before they leave; answered by `Retired`, which
    takes as long as the scheduler and the data do. Repeating it is harmless.
    """

    cluster: str
    epoch: int
    workers: list[str]


class Signature(Frame, frozen=True):
    """Answer to `WantSignature`."""

    lease: str
    certificate: bytes
    ca: bytes


# ---------------------------------------------------------------- agent → server


class ClusterRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A scheduler process by name."""

    cluster: str
    epoch: int


class ClusterOpened(Frame, frozen=True):
    """The scheduler answers at `address`."""

    cluster: str
    epoch: int
    address: str
    dashboard: str
    ca: bytes


class ClusterGone(Frame, frozen=True):
    """The scheduler process is no more (or could not be had); `why` for people."""

    cluster: str
    epoch: int
    why: str


class ClusterStatus(Frame, frozen=True):
    """How a scheduler is, at most once a second and only after a change."""

    cluster: str
    epoch: int
    workers: int
    tasks: int
    """Tasks it knows that are neither in memory nor erred nor forgotten."""
    clients: int
    idle_s: float
    """Since when nothing was computed and no client called; 0 while busy."""


class Signed(Frame, frozen=True):
    """Answer to `Sign`; an empty certificate means that the request was refused, `why` says why."""

    request: int
    certificate: bytes
    ca: bytes
    why: str = ""


class WantSignature(Frame, frozen=True):
    """An agent that does not run the scheduler asks for its workers' certificate; answered by `Signature`."""

    lease: str
    csr: bytes


class SlotsJoined(Frame, frozen=True):
    """The worker of the lease has joined."""

    lease: str
    address: str


class SlotsLeft(Frame, frozen=True):
    """Nothing of the lease is left: its threads are free, its fresh process ended and its scratch folder wiped.

    Also sent unasked, when its worker is lost (its scheduler died, its process was killed).
    """

    lease: str
    why: str
    failed: bool = False
    """It never joined, for a reason of its own (a preload that raises, more memory than it may): the next one would not
    either. Not said where its agent, its scheduler or its host was the reason.
    """


class Retired(Frame, frozen=True):
    """Answer to `RetireWorkers`: the names of the workers whose data is safe elsewhere."""

    cluster: str
    epoch: int
    workers: list[str]
    kept: dict[str, str] = {}
    """Those whose data could not be moved, and why. They go on as members; who wants them to go asks again."""


class WorkersDeaf(Frame, frozen=True):
    """Workers (by address) of other agents that did not answer when a client restarted them: they are to end at once."""

    cluster: str
    epoch: int
    workers: list[str]


# ---------------------------------------------------------------- clusters of jobs: worker process ↔ agent ↔ server


class NeedCluster(Frame, frozen=True):
    """An attempt asks for a cluster of its own; answered by `JobCluster`.

    Its thread is free from now on, and so is its slot: it waits on the event loop, or has seceded. The cluster is closed
    with the attempt's outcome.
    """

    seq: int
    run: int
    attempt: int
    csr: bytes
    """For the attempt's client."""
    tasks: int = 0
    """Of the graph, 0 if there is none yet."""
    width: int = 0
    """Tasks of it that could run at once at most, as far as can be told cheaply."""
    n_workers: int | None = None
    threads_per_worker: int | None = None
    resources: dict[str, float] = {}


class JobCluster(Frame, frozen=True):
    """The cluster of an attempt; or, with an empty address, why there will be none."""

    seq: int
    attempt: int
    cluster: str
    address: str
    ca: bytes
    certificate: bytes
    why: str = ""


ClusterAgentFrame = (
    ClusterOpened
    | ClusterGone
    | ClusterStatus
    | Signed
    | WantSignature
    | SlotsJoined
    | SlotsLeft
    | Retired
    | WorkersDeaf
    | NeedCluster
)
ClusterServerFrame = OpenCluster | CloseCluster | Sign | GrantSlots | TakeSlots | RetireWorkers | Signature | JobCluster
