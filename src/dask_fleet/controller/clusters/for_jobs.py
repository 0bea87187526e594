"""Clusters of jobs: one for an attempt that asks, closed with the attempt's outcome."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from dask_fleet.controller.agents import AgentHandle, Agents
from dask_fleet.controller.clusters import placing
from dask_fleet.controller.clusters.book import AttemptKey, Book, Entry
from dask_fleet.controller.clusters.capacity import Size, amounts_text, declared_names
from dask_fleet.controller.clusters.slots import SlotGiver
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.clusters import ClusterKind, ClusterRecord, ClusterSpec, NewCluster
from dask_fleet.model.errors import ClusterImpossible, Conflict, FleetError, InvalidParameters
from dask_fleet.model.ids import random_id
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.protocol.cluster_frames import JobCluster, NeedCluster

if TYPE_CHECKING:
    from dask_fleet.controller.clusters.manager import Clusters

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_LOOK_S = 30.0
"""How long is waited before it is looked whether the attempt still runs."""


class JobClusters:
    """Gives attempts their clusters."""

    def __init__(
        self,
        *,
        clusters: Clusters,
        book: Book,
        agents: Agents,
        dispatcher: Dispatcher,
        slots: SlotGiver,
        clock: Clock,
    ) -> None:
        self._clusters = clusters
        self._book = book
        self._agents = agents
        self._dispatcher = dispatcher
        self._slots = slots
        self._clock = clock
        self._giving: set[AttemptKey] = set()

    def is_under_way(self, record: ClusterRecord) -> bool:
        """Whether the attempt of a job's cluster still runs."""
        return self._job(record.seq or 0, record.attempt or 0) is not None

    async def need(self, handle: AgentHandle, frame: NeedCluster) -> None:
        """See `Clusters.need`. Asked again for one attempt, it gives the same cluster."""
        key = (frame.seq, frame.attempt)
        if key in self._giving:
            return  # its answer is on the way
        self._giving.add(key)
        try:
            answer = await self._answer(handle, frame)
        finally:
            self._giving.discard(key)
        job = self._job(*key)
        if job is not None:
            (self._agents.get(job.agent or "") or handle).send(answer)

    async def _answer(self, handle: AgentHandle, frame: NeedCluster) -> JobCluster:
        while True:
            try:
                return await self._give(handle, frame)
            except FleetError as exc:
                if not exc.retryable or self._job(frame.seq, frame.attempt) is None:
                    return _none(frame.seq, frame.attempt, exc.detail)
                # A full disk, a shutdown, an agent out of reach: no reason to fail a job that can wait.
                log.warning(
                    "a job's cluster is postponed: %s", exc.detail, extra={"action": "cluster_postponed", "seq": frame.seq}
                )
            await asyncio.sleep(_AGAIN_S)

    def lost(self, entry: Entry, why: str) -> None:
        """The scheduler of a job's cluster is lost: the attempt is told, and asks for another cluster when it runs again."""
        record = entry.record
        job = self._job(record.seq or 0, record.attempt or 0)
        handle = None if job is None else self._agents.get(job.agent or "")
        if handle is not None:
            handle.send(_none(record.seq or 0, record.attempt or 0, f"its scheduler was lost: {why}", record.cluster_id))

    async def _give(self, handle: AgentHandle, frame: NeedCluster) -> JobCluster:
        key = (frame.seq, frame.attempt)
        job = self._job(*key)
        if job is None or job.run != frame.run:
            raise Conflict("the attempt is not under way any more")
        cluster_id = self._book.by_attempt.get(key)
        if cluster_id is None:
            new = self._new(job, handle, frame)
            waits_s = max(0.0, (self._clock.now_us() - job.opened_us) / 1e6)
            cluster_id = (await self._clusters.create(new, frame.csr, waits_s=waits_s)).cluster_id
        while True:
            record = await self._clusters.wait(cluster_id, _LOOK_S)
            if record.state is ClusterState.RUNNING:
                break
            if record.state not in {ClusterState.PENDING, ClusterState.STARTING}:
                raise Conflict(record.reason or f"its cluster is {record.state}")
            if self._job(*key) is None:
                await self._clusters.close(cluster_id, "its job's attempt has ended")
                raise Conflict("the attempt is not under way any more")
        certificate, ca = await self._clusters.sign(cluster_id, frame.csr)
        return JobCluster(
            seq=frame.seq, attempt=frame.attempt, cluster=cluster_id, address=record.address, ca=ca, certificate=certificate
        )

    def _new(self, job: JobRecord, handle: AgentHandle, frame: NeedCluster) -> NewCluster:
        threads = 1 if frame.threads_per_worker is None else frame.threads_per_worker
        if threads < 1 or (frame.n_workers is not None and frame.n_workers < 1):
            raise InvalidParameters("a job's cluster needs at least one worker of at least one thread")
        if not all(math.isfinite(amount) and amount >= 0 for amount in frame.resources.values()):
            raise InvalidParameters("resources of workers are numbers that are not negative")
        hosts = self._slots.hosts(handle.pool)
        size, names = Size(threads, 0, tuple(sorted(frame.resources.items()))), declared_names(hosts, handle.pool)
        room = sum(host.most(size, names) for host in hosts)
        if frame.n_workers is None:
            free = sum(max(host.free, 0) for host in hosts) + self._clusters.spares.slots_in(handle.pool)
            n_workers = max(1, min(placing.width_to_workers(frame.width, threads, free=free), room))
            if self._clusters.max_workers is not None:
                n_workers = max(1, min(n_workers, self._clusters.max_workers))
        else:
            n_workers = frame.n_workers
            if n_workers > room:
                raise ClusterImpossible(
                    f"the job needs {n_workers} workers of {threads} threads{_with(size)}; pool {handle.pool!r} has room for"
                    f" {room} at most, however free: ask for fewer workers, or add agents"
                )
        spec = ClusterSpec(
            n_workers=n_workers, threads_per_worker=threads, resources=frame.resources, pool=handle.pool,
            idle_timeout_s=None, dashboard=False,
        )  # fmt: skip
        return NewCluster(
            cluster_id=random_id("cluster"), name=f"job-{job.job_id[:12]}-{job.attempt}", tenant=job.tenant,
            user=job.opened_by or job.user, kind=ClusterKind.JOB, spec=spec, seq=job.seq, attempt=job.attempt,
        )  # fmt: skip

    def _job(self, seq: int, attempt: int) -> JobRecord | None:
        job = self._dispatcher.by_seq.get(seq)
        if job is None or job.attempt != attempt or job.state is not RunState.RUNNING:
            return None
        return job


def _with(size: Size) -> str:
    return f" with {amounts_text(size.resources)} each" if size.resources else ""


def _none(seq: int, attempt: int, why: str, cluster: str = "") -> JobCluster:
    return JobCluster(seq=seq, attempt=attempt, cluster=cluster, address="", ca=b"", certificate=b"", why=why)
