"""Agents that run clusters in memory: what a real one would do with each frame, at once or when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.controller.rig import Rig, Side

from dask_fleet.controller.clusters.manager import Clusters
from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model.clusters import ClusterKind, ClusterRecord, ClusterSpec, NewCluster
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.ids import random_id
from dask_fleet.plugins.clock import Clock
from dask_fleet.protocol.cluster_frames import (
    CloseCluster,
    ClusterGone,
    ClusterOpened,
    ClusterRef,
    GrantSlots,
    OpenCluster,
    Retired,
    RetireWorkers,
    Sign,
    Signature,
    Signed,
    SlotsJoined,
    SlotsLeft,
    TakeSlots,
    WantSignature,
)
from dask_fleet.protocol.frames import (
    PROTOCOL_VERSION,
    AgentFrame,
    Hello,
    ServerFrame,
)


class FaultyLedger(MemoryLedger):
    """Refuses writes while it is full."""

    def __init__(self, *, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.is_full = False

    def _now_us(self) -> int:
        if self.is_full:
            raise LedgerUnavailable("full")
        return super()._now_us()


class Worker:
    """A Dask worker that an agent runs."""

    def __init__(self, frame: GrantSlots) -> None:
        self.frame = frame
        self.joined = False


class Host:
    """An agent process: lives on while its connection is lost, and is gone for good once killed."""

    def __init__(
        self, rig: Rig, agent_id: str, *, slots: int = 4, nworkers: int = 4, pool: str = "default", **more: Any
    ) -> None:
        self.rig = rig
        self.agent_id = agent_id
        self.slots, self.nworkers, self.pool = slots, nworkers, pool
        self.more = more
        """Further members of its `Hello`."""
        self.schedulers: set[tuple[str, int]] = set()
        self.workers: dict[str, Worker] = {}
        self.ended: set[tuple[str, int] | str] = set()
        """Schedulers and leases that were here: as a real agent, it begins none of them anew."""
        self.seen: list[ServerFrame] = []
        self.retires: bool = True
        self.kept: dict[str, str] = {}
        """Names of workers whose data nobody can take, and why."""
        self.moved: set[tuple[str, int, str]] = set()
        """Workers whose data its schedulers have moved: cluster, epoch, and name."""
        self.opens: bool = True
        self.joins: bool = True
        self.most_threads = 0
        self.side: Side | None = None
        self.ledger_id = ""

    # ------------------------------------------------------------------ the connection

    def connect(self) -> Host:
        """Dial in and say what runs."""
        side = Side(self.rig)
        hello = Hello(
            PROTOCOL_VERSION, self.agent_id, self.agent_id.rpartition("-")[0], 1, self.slots, self.ledger_id, [],
            nworkers=self.nworkers, nthreads=max(self.slots // self.nworkers, 1), pool=self.pool,
            clusters=[ClusterRef(*name) for name in sorted(self.schedulers)], leases=sorted(self.workers),
            **self.more,
        )  # fmt: skip
        side.handle = self.rig.controller.sessions.attach(hello, side.put)
        self.ledger_id = self.rig.ledger.ledger_id
        self.side = side
        side.ready()
        return self

    def disconnect(self) -> None:
        """Lose the connection, and the frames under way."""
        if self.side is not None:
            side, self.side = self.side, None
            side.drop()

    def say(self, *frames: AgentFrame) -> None:
        """Tell the server, if it can be reached."""
        if self.side is not None and self.side.handle.is_reached_by(self.side.put):
            self.rig.controller.sessions.receive(self.side.handle, list(frames))

    def take(self) -> list[ServerFrame]:
        """Return the frames that have come."""
        if self.side is None:
            return []
        frames = list(self.side.frames)
        self.side.frames.clear()
        self.seen += frames
        return frames

    def work(self) -> bool:
        """Do what the frames that have come ask for; return whether there were any."""
        frames = self.take()
        for frame in frames:
            self.do(frame)
        return bool(frames)

    def got(self, kind: type[Any]) -> list[Any]:
        """Return the frames of that kind that were worked off."""
        return [frame for frame in self.seen if isinstance(frame, kind)]

    # ------------------------------------------------------------------ what it does

    def do(self, frame: ServerFrame) -> None:
        """Work off one frame."""
        match frame:
            case OpenCluster():
                if not self.opens:
                    return
                if (frame.cluster, frame.epoch) in self.ended:
                    self.say(ClusterGone(frame.cluster, frame.epoch, "it has ended"))
                    return
                self.schedulers.add((frame.cluster, frame.epoch))
                address = f"tls://{self.agent_id}:{frame.epoch}/{frame.cluster}"
                self.say(ClusterOpened(frame.cluster, frame.epoch, address, "", b"ca " + address.encode()))
                self.join()
            case CloseCluster():
                self.end_scheduler(frame.cluster, frame.epoch, "closed")
            case GrantSlots():
                known = self.workers.get(frame.lease)
                if frame.lease in self.ended or (not frame.address and (frame.cluster, frame.epoch) in self.ended):
                    self.say(SlotsLeft(frame.lease, "it has ended"))
                    return
                if known is None:
                    self.workers[frame.lease] = Worker(frame)
                    threads = sum(worker.frame.threads for worker in self.workers.values())
                    self.most_threads = max(self.most_threads, threads)
                elif known.joined:
                    known.joined = False  # says it again
                self.join()
            case TakeSlots():
                if self.workers.pop(frame.lease, None) is not None:
                    self.ended.add(frame.lease)
                self.say(SlotsLeft(frame.lease, "taken"))
            case RetireWorkers():
                if self.retires:
                    kept = {name: why for name, why in self.kept.items() if name in frame.workers}
                    moved = [name for name in frame.workers if name not in kept]
                    self.moved.update((frame.cluster, frame.epoch, name) for name in moved)
                    self.say(Retired(frame.cluster, frame.epoch, moved, kept))
            case Sign():
                self.say(Signed(frame.request, b"signed " + frame.csr, b"ca"))
            case Signature():
                pass

    def join(self) -> None:
        """Let workers join whose scheduler can be reached."""
        for lease, worker in self.workers.items():
            here = (worker.frame.cluster, worker.frame.epoch) in self.schedulers
            if not worker.joined and (worker.frame.address or here) and self.joins:
                worker.joined = True
                self.say(SlotsJoined(lease, f"tls://worker/{lease}"))

    def end_scheduler(self, cluster: str, epoch: int, why: str) -> None:
        """The scheduler process ends; its workers on this agent with it."""
        if (cluster, epoch) in self.schedulers:
            self.schedulers.remove((cluster, epoch))
            self.ended.add((cluster, epoch))
        self.say(ClusterGone(cluster, epoch, why))
        for lease, worker in list(self.workers.items()):
            if (worker.frame.cluster, worker.frame.epoch) == (cluster, epoch):
                self.lose_worker(lease, "its scheduler is gone")

    def lose_worker(self, lease: str, why: str = "killed", *, failed: bool = False) -> None:
        """A worker's process ends; or never got so far as to join, for a reason of its own."""
        if self.workers.pop(lease, None) is not None:
            self.ended.add(lease)
            self.say(SlotsLeft(lease, why, failed))

    def want_signature(self, lease: str) -> None:
        self.say(WantSignature(lease, b"csr"))


@asynccontextmanager
async def one_host(*, slots: int = 4, nworkers: int = 4, **options: Any) -> AsyncIterator[tuple[Rig, Host, Clusters]]:
    """Yield a controller of these options, the one agent that is connected to it, and its clusters."""
    async with Rig(**options) as rig:
        yield rig, Host(rig, "local-a", slots=slots, nworkers=nworkers).connect(), rig.controller.clusters


async def work(rig: Rig, *hosts: Host) -> None:
    """Let server and agents go on until nobody has anything to say."""
    for _ in range(100):
        await rig.settle()
        worked = [host.work() for host in hosts]
        if not any(worked):
            return
    raise AssertionError("they never come to rest")


def new(name: str = "c", **changes: Any) -> NewCluster:
    """Return a request for a cluster; members of its spec may be given as well."""
    spec = {key: changes.pop(key) for key in list(changes) if key in ClusterSpec.__struct_fields__}
    fields: dict[str, Any] = {
        "cluster_id": random_id("cluster"), "name": name, "tenant": "default", "user": "ada", "kind": ClusterKind.USER,
        "spec": ClusterSpec(**({"n_workers": 2} | spec)),
    }
    return NewCluster(**(fields | changes))


async def now(clusters: Clusters, record: ClusterRecord) -> ClusterRecord:
    """Return how a cluster stands, living or ended."""
    return await clusters.wait(record.cluster_id, 0)
