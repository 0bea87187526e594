"""What the server knows of clusters and of the slots lent to them. In memory; the ledger is the truth."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator

from msgspec.structs import replace

from dask_fleet.controller.agents import AgentHandle, Agents
from dask_fleet.controller.clusters.placing import Owner
from dask_fleet.controller.clusters.setbacks import Setbacks
from dask_fleet.model.cluster_states import ClusterState, SlotLeaseState
from dask_fleet.model.clusters import ClusterKind, ClusterRecord, SlotLease
from dask_fleet.protocol.cluster_frames import ClusterOpened, ClusterStatus

AttemptKey = tuple[int, int]
"""``(seq, attempt)``."""


class Held:
    """A slot lease that takes slots: planned, or recorded and not ended yet."""

    __slots__ = (
        "address", "failed", "joined", "kept", "lease", "left", "recorded", "retire_asked_at", "retired", "retires",
        "sent_at", "since", "taken_at",
    )

    def __init__(self, lease: SlotLease, *, recorded: bool, since: float) -> None:
        self.lease = lease
        self.recorded = recorded
        """Whether the ledger has it; until then it is a plan, which keeps its slots from others."""
        self.joined = False
        """Its agent says so; the ledger may not yet."""
        self.address = ""
        """Where its worker was last heard to listen."""
        self.left: str | None = None
        """Why it left, as its agent says."""
        self.failed = False
        """It left before it had joined, for a reason of its own: see `SlotsLeft`."""
        self.since = since
        """When it was planned, or this server began (monotonic clock)."""
        self.sent_at: float | None = None
        self.taken_at: float | None = None
        self.retires = False
        """It is to leave once the scheduler has moved its data, however long that takes."""
        self.retire_asked_at: float | None = None
        """When the scheduler was last asked to."""
        self.retired = False
        """Its data is safe elsewhere."""
        self.kept = ""
        """Why its data could not be moved, as the scheduler last said."""


class Entry:
    """One cluster, from its creation until the last of its slots is back."""

    def __init__(self, record: ClusterRecord, *, now: float) -> None:
        self.record = record
        self.held: dict[str, Held] = {}
        self.next_worker = 0
        self.since = now
        """Since when it waits for its first worker."""
        self.open_on: str | None = None
        """The agent that is to open its next scheduler: decided, not recorded yet."""
        self.opened: ClusterOpened | None = None
        """What was said of a scheduler that came up and is not recorded yet."""
        self.ended: dict[int, str] = {}
        """Why the scheduler of an epoch ended."""
        self.asked_at: float | None = None
        """When the scheduler's agent was last told what is wanted of it."""
        self.starting_since = now
        self.close_reason: str | None = None
        self.fail_reason: str | None = None
        self.lost_at: deque[float] = deque(maxlen=16)
        self.status: ClusterStatus | None = None
        self.status_at = now
        self.setbacks = Setbacks()
        """Workers that ended before they had joined."""
        self.used_since = -math.inf
        """Before that it was nobody's: a spare's idleness is not that of who gets it."""
        self.sheds = False
        """It was a spare with more workers than its user wants: it is complete when those that are too many have left."""
        self.is_taken = False
        """It is being handed out: nobody else may have it, or close it for its slots."""
        self.csr: bytes | None = None
        self.leave_first: set[str] = set()
        """Names of workers that go first when it shrinks."""
        self.waiters: list[asyncio.Future[None]] = []
        self.is_busy = False
        self.is_dirty = False

    def take(self, record: ClusterRecord) -> None:
        """Take what the ledger has said of it. A target, or an owner, that has come meanwhile stays."""
        mine = self.record
        record = replace(record, spec=mine.spec)
        if record.kind is ClusterKind.SPARE and mine.kind is not ClusterKind.SPARE:
            record = replace(record, kind=mine.kind, name=mine.name, user=mine.user, created_us=mine.created_us)
        self.record = record

    @property
    def owner(self) -> Owner:
        """Whose turn it takes."""
        return self.record.tenant, self.record.user

    @property
    def epoch_to_be(self) -> int:
        """The epoch that new workers join."""
        return self.record.epoch + (self.record.state is ClusterState.PENDING)

    @property
    def live(self) -> list[Held]:
        """The leases that count for the target: of the present scheduler, or the next, and not on their way out."""
        epoch = self.epoch_to_be
        return [
            held
            for held in self.held.values()
            if held.lease.epoch == epoch
            and held.left is None
            and not (held.retires or held.retired)
            and held.lease.state is not SlotLeaseState.LEAVING
        ]

    @property
    def retiring(self) -> list[Held]:
        """The leases of workers that leave when their data is elsewhere."""
        return [held for held in self.held.values() if held.retires and held.lease.state is SlotLeaseState.JOINED]

    def keep_kept(self) -> None:
        """If more are wanted again, let those stay that could not go anyway: nobody else has room for their data."""
        missing = max(0, self.record.spec.n_workers - len(self.live))
        for held in [held for held in self.retiring if held.kept and not held.retired][:missing]:
            held.retires, held.retire_asked_at, held.kept = False, None, ""

    @property
    def workers(self) -> int:
        """Workers that have joined and are not leaving."""
        return sum(held.joined for held in self.live)

    @property
    def joining(self) -> int:
        """Workers that have been granted slots and have not joined yet."""
        return sum(not held.joined for held in self.live)

    @property
    def is_complete(self) -> bool:
        """Whether it runs with all the workers that it can have for now, and with one at least if it is to have any."""
        if self.record.state is not ClusterState.RUNNING or not self.is_wanted:
            return False
        if self.sheds and (
            len(self.live) > self.record.spec.n_workers or any(not (held.retired or held.kept) for held in self.retiring)
        ):
            return False
        return self.joining == 0 and (self.record.spec.n_workers == 0 or self.workers > 0)

    @property
    def is_wanted(self) -> bool:
        """Whether it is to have a scheduler and workers."""
        return (
            self.close_reason is None
            and self.fail_reason is None
            and self.record.state in {ClusterState.PENDING, ClusterState.STARTING, ClusterState.RUNNING}
        )

    @property
    def recovers(self) -> bool:
        """Whether it had a scheduler before and is to get another one."""
        return self.record.state is ClusterState.PENDING and self.record.epoch > 0


class Book:
    """All clusters, and how many slots of each agent they take."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self.entries: dict[str, Entry] = {}
        self.by_attempt: dict[AttemptKey, str] = {}
        self.lease_of: dict[str, str] = {}
        """Cluster by lease."""
        self._taken: dict[str, int] = {}
        self._strays: dict[str, set[str]] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries.values()))

    def add(self, entry: Entry) -> None:
        """Take a cluster into the book."""
        record = entry.record
        self.entries[record.cluster_id] = entry
        if record.seq is not None and record.attempt is not None:
            self.by_attempt[record.seq, record.attempt] = record.cluster_id

    def remove(self, entry: Entry) -> None:
        """The cluster has ended, and nothing of it is left."""
        record = entry.record
        self.entries.pop(record.cluster_id, None)
        if record.seq is not None and record.attempt is not None:
            self.by_attempt.pop((record.seq, record.attempt), None)

    def made_by(self, cluster_id: str) -> Entry | None:
        """Return what a request for that id has made, or the spare that it got."""
        found = self.entries.get(cluster_id)
        if found is not None:
            return found
        return next((entry for entry in self if entry.record.spec.requested_as == cluster_id), None)

    def living(self, owner: Owner) -> int:
        """Return how many clusters of a user live."""
        return sum(not entry.record.state.is_terminal and entry.owner == owner for entry in self.entries.values())

    # ------------------------------------------------------------------ slots

    def hold(self, entry: Entry, held: Held) -> None:
        """Count the slots of a lease as taken."""
        lease = held.lease
        assert lease.lease_id not in self.lease_of, "a lease takes its slots once"
        entry.held[lease.lease_id] = held
        self.lease_of[lease.lease_id] = lease.cluster_id
        self._taken[lease.agent] = self._taken.get(lease.agent, 0) + lease.threads
        self.mirror(lease.agent)

    def release(self, entry: Entry, held: Held) -> None:
        """The slots of a lease are free; twice is harmless."""
        lease = held.lease
        if entry.held.pop(lease.lease_id, None) is None:
            return
        del self.lease_of[lease.lease_id]
        left = self._taken[lease.agent] - lease.threads
        if left:
            self._taken[lease.agent] = left
        else:
            del self._taken[lease.agent]
        self.mirror(lease.agent)

    def stray(self, agent: str, lease_id: str) -> None:
        """An agent runs something under a lease that is over. Until it has ended, none of its slots is given to anybody:
        how many it takes is not known any more.
        """
        self._strays.setdefault(agent, set()).add(lease_id)
        self.mirror(agent)

    def stray_left(self, agent: str, lease_id: str) -> bool:
        """It has ended; whether it was a stray."""
        strays = self._strays.get(agent)
        if strays is None or lease_id not in strays:
            return False
        strays.discard(lease_id)
        if not strays:
            del self._strays[agent]
        self.mirror(agent)
        return True

    def strays(self, agent: str) -> set[str]:
        """Return the strays of an agent."""
        return set(self._strays.get(agent, ()))

    def forget_strays(self, agent: str) -> None:
        """The agent is gone, or has said anew what it runs."""
        if self._strays.pop(agent, None) is not None:
            self.mirror(agent)

    def taken(self, agent: str) -> int:
        """Return how many slots of an agent are lent to clusters."""
        return self._taken.get(agent, 0)

    def resources_left(self, handle: AgentHandle) -> dict[str, float]:
        """Return how much of each resource that an agent declares no worker has."""
        left = dict(handle.resources)
        for entry in self.entries.values():
            for name, amount in entry.record.spec.resources.items():
                if name in left:
                    left[name] -= amount * sum(held.lease.agent == handle.agent_id for held in entry.held.values())
        return left

    def mirror(self, agent: str) -> None:
        """Let the agent's handle know how many of its slots are taken."""
        handle = self._agents.get(agent)
        if handle is not None:
            handle.leased = self.taken(agent) + (handle.slots if agent in self._strays else 0)

    def find(self, lease_id: str) -> tuple[Entry, Held] | None:
        """Return a lease that takes slots, with its cluster."""
        cluster_id = self.lease_of.get(lease_id)
        if cluster_id is None:
            return None
        entry = self.entries[cluster_id]
        return entry, entry.held[lease_id]


def wake(entry: Entry) -> None:
    """Let those who wait for a change of the cluster look again."""
    waiters, entry.waiters = entry.waiters, []
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
