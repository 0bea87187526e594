"""What an agent does for Dask clusters: runs schedulers, lends its threads to Dask workers, signs certificates.

All of it is done on the agent's event loop, told by the server's frames. A cluster and a lease are a task each; when one has
ended it is remembered for a while, so that an order that was repeated is not obeyed twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from dask_fleet.agent.clusters.authority import Role
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.frames import AgentBoundFromMembership, Deaf
from dask_fleet.agent.clusters.held_cluster import HeldCluster, SchedulerLimits
from dask_fleet.agent.clusters.held_lease import Gone, HeldLease
from dask_fleet.agent.clusters.schedulers import SchedulerLauncher, SchedulerProcess
from dask_fleet.agent.clusters.scratch import Scratch
from dask_fleet.agent.clusters.spares import Spares
from dask_fleet.agent.deaths import Death
from dask_fleet.agent.launcher import Launcher
from dask_fleet.agent.supervisor import Supervisor
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.protocol.cluster_frames import (
    CloseCluster,
    ClusterAgentFrame,
    ClusterGone,
    ClusterRef,
    GrantSlots,
    OpenCluster,
    RetireWorkers,
    Sign,
    Signature,
    Signed,
    SlotsLeft,
    TakeSlots,
    WorkersDeaf,
)

log = logging.getLogger(__name__)

_REMEMBERED = 2_000
"""Ended clusters and leases that are remembered."""
_RENEW_EVERY_S = 600.0
"""Longest time between two looks at who needs a fresh certificate: half-way through the old one."""
_CLOSE_S = 8.0
"""How long clusters may take to end in an orderly way when the agent ends."""

DEAF = "it did not answer when a client restarted it"

HostFrame = OpenCluster | CloseCluster | Sign | GrantSlots | TakeSlots | RetireWorkers | Signature


class ClusterHost:
    """The clusters and leases of one agent.

    Parameters
    ----------
    supervisor
        Lends threads and shared processes.
    send
        Takes frames for the server; may drop them while disconnected: `welcomed` says again what counts.
    host
        Returns the address under which other hosts of the fleet reach this one.
    memory_limit_bytes, nthreads
        Of each of the agent's own worker processes; 0 for no limit. A fresh process gets as much for each of its threads.
    limits
        Of the schedulers that it runs.
    spares
        Scheduler processes to keep ready; of worker processes twice as many, no more than there are slots.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        supervisor: Supervisor,
        send: Callable[[ClusterAgentFrame], None],
        host: Callable[[], str],
        data_dir: Path,
        memory_limit_bytes: int,
        nthreads: int,
        slots: int,
        spares: int,
        limits: SchedulerLimits,
    ) -> None:
        self._supervisor = supervisor
        self._send = send
        self._host = host
        self._memory_limit_bytes = memory_limit_bytes
        self._nthreads = nthreads
        self._limits = limits
        self._scratch = Scratch(data_dir)
        self._targets: Sequence[str] = ()
        self._loop = asyncio.get_running_loop()
        self._scheduler_launcher = SchedulerLauncher(launcher.forker, launcher.folder)
        self._schedulers: Spares[SchedulerProcess] = Spares(
            self._make_scheduler,
            keep=spares,
            alive=lambda process: process.alive,
            discard=lambda process: process.kill(),
            name="scheduler",
        )
        self._workers: Spares[WorkerProcess] = Spares(
            supervisor.processes.launch_for_lease,
            keep=min(2 * spares, slots),
            alive=lambda worker: not worker.ended,
            discard=lambda worker: worker.kill(),
            name="worker process",
        )
        self._clusters: dict[ClusterRef, HeldCluster] = {}
        self._leases: dict[str, HeldLease] = {}
        self._ended: OrderedDict[ClusterRef | str, str] = OrderedDict()
        """Why each of the last clusters and leases ended."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewal: asyncio.Task[None] | None = None
        self._refusal = ""

    # ------------------------------------------------------------------ life

    async def sweep(self) -> None:
        """Remove what an earlier agent of this data folder has left."""
        await asyncio.to_thread(self._scratch.sweep)

    def take_no_more(self, why: str) -> None:
        """Refuse clusters and leases from now on."""
        self._refusal = why

    async def close(self, why: str) -> None:
        """End all clusters and leases in an orderly way, as far as time allows. Twice is harmless."""
        self._refusal = self._refusal or why
        if self._renewal is not None:
            self._renewal.cancel()
        self.abandon(why)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self._schedulers.close(), self._workers.close())

    def abandon(self, why: str) -> None:
        """End all clusters and leases."""
        for cluster in self._clusters.values():
            cluster.close(why)
        for lease in self._leases.values():
            lease.take(0.0, why)

    def welcomed(self, targets: Sequence[str] = ()) -> None:
        """The server is (again) there: tell it how things are, as it may have missed what changed.

        Parameters
        ----------
        targets
            Services whose modules the graphs of jobs may name.
        """
        self._targets = targets
        self._schedulers.begin()
        self._workers.begin()
        if self._renewal is None:
            self._renewal = self._loop.create_task(self._renew(), name="renew-certificates")
        for cluster in self._clusters.values():
            cluster.tell()
        for lease in self._leases.values():
            lease.tell()

    # ------------------------------------------------------------------ what there is

    @property
    def clusters(self) -> list[ClusterRef]:
        """The scheduler processes there are."""
        return list(self._clusters)

    @property
    def leases(self) -> list[str]:
        """The leases of which something is here."""
        return list(self._leases)

    # ------------------------------------------------------------------ what the server asks

    def handle(self, frame: HostFrame) -> None:
        """Do what the server asks; returns at once."""
        if isinstance(frame, OpenCluster):
            self._open(frame)
        elif isinstance(frame, GrantSlots):
            self._grant(frame)
        elif isinstance(frame, TakeSlots):
            lease = self._leases.get(frame.lease)
            if lease is None:
                self._send(SlotsLeft(frame.lease, self._ended.get(frame.lease, "its agent does not have it")))
            else:
                lease.take(frame.grace_s)
        elif isinstance(frame, CloseCluster):
            ref = ClusterRef(frame.cluster, frame.epoch)
            if (cluster := self._clusters.get(ref)) is not None:
                cluster.close("closed")
            else:
                self._send(ClusterGone(*_names(ref), self._ended.get(ref, "its agent does not have it")))
        elif isinstance(frame, Sign):
            self._sign(frame)
        elif isinstance(frame, RetireWorkers):
            self._run(self._retire(frame), f"retire-{frame.cluster}")
        elif (lease := self._leases.get(frame.lease)) is not None:
            lease.signed(frame)

    def _open(self, request: OpenCluster) -> None:
        ref = ClusterRef(request.cluster, request.epoch)
        if (known := self._clusters.get(ref)) is not None:
            known.told_again(request)
            return
        why = self._ended.get(ref, self._refusal)
        if not why and any(other.cluster == ref.cluster and other.epoch > ref.epoch for other in self._clusters):
            why = "there is a later epoch of this cluster"
        if why:
            self._send(ClusterGone(*_names(ref), why))
            return
        for other, cluster in self._clusters.items():
            if other.cluster == ref.cluster:
                cluster.close("a later epoch of this cluster was opened")
        cluster = self._clusters[ref] = HeldCluster(
            request,
            spares=self._schedulers,
            host=self._host(),
            send=self._send,
            limits=self._limits,
            folder=self._scratch.of_scheduler(request.cluster, request.epoch),
            targets=self._targets,
            on_deaf=self._take_deaf,
        )
        self._run(self._live(cluster), f"cluster-{request.cluster}")

    async def _live(self, cluster: HeldCluster) -> None:
        why = "its agent ended"
        try:
            why = await cluster.live()
        finally:
            del self._clusters[cluster.ref]
            self._remember(cluster.ref, why)
            for lease in self._leases.values():
                if lease.of == _names(cluster.ref):
                    lease.end(f"its scheduler is gone: {why}")
            self._send(ClusterGone(*_names(cluster.ref), why))
            level = logging.INFO if cluster.closing else logging.WARNING
            log.log(level, "scheduler gone: %s", why, extra={"action": "scheduler_gone", "cluster": cluster.ref.cluster})
        await self.wipe_scratch(cluster.folder.name)

    def _grant(self, grant: GrantSlots) -> None:
        if (known := self._leases.get(grant.lease)) is not None:
            known.tell()
            return
        ref = ClusterRef(grant.cluster, grant.epoch)
        cluster = self._clusters.get(ref)
        why = self._ended.get(grant.lease, self._refusal)
        if not why and cluster is None and not grant.address:
            why = f"its scheduler is not here: {self._ended.get(ref, 'this agent was never asked for it')}"
        if why:
            self._send(SlotsLeft(grant.lease, why))
            return
        lease = self._leases[grant.lease] = HeldLease(
            grant,
            lender=self,
            host=self._host(),
            memory_limit_bytes=self._memory_limit_bytes,
            nthreads=self._nthreads,
            local=None if cluster is None else lambda: _own(cluster),
            send=self._send,
        )
        self._run(self._serve(lease), f"lease-{grant.lease}")

    async def _serve(self, lease: HeldLease) -> None:
        why = "its agent ended"
        try:
            why = await lease.live()
        finally:
            del self._leases[lease.grant.lease]
            self._remember(lease.grant.lease, why)
            self._send(lease.gone(why))

    def _sign(self, frame: Sign) -> None:
        cluster = self._clusters.get(ClusterRef(frame.cluster, frame.epoch))
        if cluster is None:
            self._send(Signed(frame.request, b"", b"", "the scheduler of this cluster is not here any more"))
            return
        try:
            role = Role.WORKER if frame.role == Role.WORKER else Role.CLIENT
            certificate = cluster.authority.sign(frame.csr, role)
        except ValueError as exc:
            self._send(Signed(frame.request, b"", b"", f"the certificate request is of no use: {exc}"))
            return
        self._send(Signed(frame.request, certificate.encode(), cluster.authority.ca.encode()))

    async def _retire(self, frame: RetireWorkers) -> None:
        cluster = self._clusters.get(ClusterRef(frame.cluster, frame.epoch))
        if cluster is not None:  # else its end is told, or was
            self._send(await cluster.move_data(frame.workers))

    # ------------------------------------------------------------------ what worker processes say

    def heard(self, frame: AgentBoundFromMembership) -> None:
        """Take what a worker process says of a lease."""
        if (lease := self._leases.get(frame.membership)) is not None:
            lease.heard(frame)

    def process_ended(self, worker: WorkerProcess, death: Death) -> None:
        """A worker process is no more, and with it the Dask workers it carried."""
        for name in list(worker.leases):
            if (lease := self._leases.get(name)) is not None:
                lease.process_ended(death)
        if worker.for_lease:
            self._workers.lost()

    def _take_deaf(self, ref: ClusterRef, deaf: Deaf) -> None:
        """End workers that do not answer, those of other agents by way of the server, which lends their slots again."""
        here = {lease.address: lease for lease in self._leases.values() if lease.of == _names(ref)}
        for address in deaf.workers:
            if address in here:
                here[address].take(0.0, DEAF)
        if elsewhere := [address for address in deaf.workers if address not in here]:
            self._send(WorkersDeaf(*_names(ref), elsewhere))

    # ------------------------------------------------------------------ what leases need

    async def lend(self, threads: int) -> None:
        """Wait until so many threads are free, and count them as taken."""
        await self._supervisor.lend(threads)

    def give_back(self, threads: int) -> None:
        """Count them as free."""
        self._supervisor.give_back(threads)

    def shared_process(self, tenant: str, threads: int) -> WorkerProcess | None:
        """Return a process that serves this tenant, or nobody yet, and has so many free threads."""
        return self._supervisor.processes.choose_for_lease(tenant, threads)

    async def fresh_process(self) -> WorkerProcess:
        """Return a process that has served nobody."""
        return await self._workers.take()

    async def make_scratch(self, lease: str, wanted: object) -> Path:
        """Make a lease's scratch folder."""
        return await asyncio.to_thread(self._scratch.make, lease, wanted)

    async def wipe_scratch(self, name: str) -> None:
        """Remove the folder of a lease or a scheduler."""
        await asyncio.to_thread(self._scratch.wipe, name)

    # ------------------------------------------------------------------ inside

    async def _make_scheduler(self) -> SchedulerProcess:
        process = await self._scheduler_launcher.launch()
        process.on_exit = lambda _: self._schedulers.lost()
        try:
            await process.ready()
        except BaseException:
            process.kill()
            raise
        return process

    async def _renew(self) -> None:
        """Give everyone a fresh certificate in good time."""
        lifetime_s = self._limits.certificate_lifetime_s
        while True:
            await asyncio.sleep(min(_RENEW_EVERY_S, lifetime_s / 8))
            due_us = int((time.time() + lifetime_s / 2) * 1e6)
            for cluster in list(self._clusters.values()):
                if cluster.expires_us < due_us:
                    cluster.renew()
            for lease in list(self._leases.values()):
                if lease.expires_us < due_us:
                    cluster_here = self._clusters.get(ClusterRef(lease.grant.cluster, lease.grant.epoch))
                    lease.renew(None if cluster_here is None else cluster_here.issue(Role.WORKER))

    def _remember(self, what: ClusterRef | str, why: str) -> None:
        self._ended[what] = why
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a task of a cluster failed", exc_info=exc, extra={"action": "cluster_task_failed"})


async def _own(cluster: HeldCluster) -> tuple[str, Credentials]:
    """Wait until a scheduler of this agent listens; returns where, and a worker's credentials."""
    opened = await asyncio.shield(cluster.opened)
    if opened is None:
        raise Gone("its scheduler could not be opened")
    return opened.address, cluster.issue(Role.WORKER)


def _names(ref: ClusterRef) -> tuple[str, int]:
    return ref.cluster, ref.epoch
