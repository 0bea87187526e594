"""The clusters' face to the server: create, wait, sign, scale, close, find."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec.structs import replace

from dask_fleet.controller.agents import AgentHandle, Agents
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.clusters import placing
from dask_fleet.controller.clusters.book import Book, Entry, Held, wake
from dask_fleet.controller.clusters.capacity import size_of
from dask_fleet.controller.clusters.for_jobs import JobClusters
from dask_fleet.controller.clusters.hearing import Hearing
from dask_fleet.controller.clusters.keeper import START_S, Keeper
from dask_fleet.controller.clusters.signing import SignedAhead, Signer
from dask_fleet.controller.clusters.slots import SlotGiver
from dask_fleet.controller.clusters.spares import SpareClusters
from dask_fleet.controller.clusters.view import ClusterView
from dask_fleet.controller.clusters.waiting import waiting_for
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.model.cluster_states import ClusterState, SlotLeaseState
from dask_fleet.model.clusters import ClusterEventRecord, ClusterKind, ClusterRecord, ClusterSpec, NewCluster
from dask_fleet.model.errors import ClusterImpossible, Conflict, Draining, NotFound, QuotaExceeded
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.protocol.cluster_frames import NeedCluster

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

TICK_S = 1.0
"""How often idle times, lifetimes and unanswered frames are looked at, while there are clusters."""


_NO_SUCH_CLUSTER = "no such cluster. See those of your tenant with `dask-fleet clusters list`, with --all ended ones too"
_LIVING = frozenset({ClusterState.PENDING, ClusterState.STARTING, ClusterState.RUNNING})
_CLOSE_RECORDED_S = 10.0


class Clusters:
    """Every living cluster, and the slots lent to it."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        agents: Agents,
        dispatcher: Dispatcher,
        alarms: Alarms,
        clock: Clock,
        spawn: Spawn,
        max_per_user: int = 20,
        max_workers: int | None = None,
        job_share: float = 0.0,
        spares: int = 0,
    ) -> None:
        self._ledger = ledger
        self._agents = agents
        self._dispatcher = dispatcher
        self._alarms = alarms
        self._clock = clock
        self._max_per_user = max_per_user
        self.max_workers = max_workers
        self.book = Book(agents)
        self._signer = Signer(agents, self.book)
        self._ahead = SignedAhead(self._signer, alarms)
        self._keeper = Keeper(
            book=self.book,
            ledger=ledger,
            agents=agents,
            alarms=alarms,
            clock=clock,
            spawn=spawn,
            changed=self._changed,
            opened=self._opened,
            lost=self._lost,
        )
        self._slots = SlotGiver(
            book=self.book,
            agents=agents,
            clock=clock,
            touch=self._keeper.touch,
            since_head=dispatcher.head_since,
            job_share=job_share,
        )
        dispatcher.others = self._slots
        self.spares = SpareClusters(
            book=self.book, ledger=ledger, agents=agents, dispatcher=dispatcher, slots=self._slots, alarms=alarms,
            clock=clock, spawn=spawn, touch=self._keeper.touch, added=self._keep_ticking, per_pool=spares,
        )  # fmt: skip
        self._slots.spares = self.spares
        self.hearing = Hearing(
            book=self.book, agents=agents, clock=clock, touch=self._keeper.touch, changed=self._changed,
            signer=self._signer, spawn=spawn,
        )  # fmt: skip
        self._jobs = JobClusters(
            clusters=self, book=self.book, agents=agents, dispatcher=dispatcher, slots=self._slots, clock=clock
        )
        self._creating: dict[tuple[str, str], int] = {}
        self._under_way: dict[str, asyncio.Task[ClusterRecord]] = {}
        """Requests that are being recorded, by the id they ask for."""
        self._ticks = False

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up the clusters of the ledger (which must be open), before any agent is heard of."""
        now = self._clock.monotonic()
        for record in await self._ledger.clusters(limit=1_000_000):
            self.book.add(Entry(record, now=now))
        for lease in await self._ledger.slot_leases():
            entry = self.book.entries.get(lease.cluster_id)
            if entry is None:  # failed, and its slots were not back yet
                ended = await self._ledger.get_cluster(lease.cluster_id)
                assert ended is not None, "a cluster that holds slots is not purged"
                entry = Entry(ended, now=now)
                self.book.add(entry)
            held = Held(lease, recorded=True, since=now)
            held.joined = lease.state is SlotLeaseState.JOINED
            if lease.state is not SlotLeaseState.GRANTED:
                entry.setbacks.joined(lease.epoch)
            self.book.hold(entry, held)
        for entry in self.book:
            ever = await self._ledger.slot_leases(cluster_id=entry.record.cluster_id, ended=True)
            entry.next_worker = 1 + max((int(lease.worker) for lease in ever), default=-1)
            for agent in {entry.record.agent, *(held.lease.agent for held in entry.held.values())} - {None}:
                assert agent is not None
                self.hearing.expect(agent)
            self._keeper.touch(entry)
        self.spares.take_up()
        if self.book.entries:
            log.info("clusters taken up", extra={"action": "clusters_recovered", "clusters": len(self.book.entries)})
            self._keep_ticking()

    def _changed(self) -> None:
        """Slots may be free, or wanted."""
        self._slots.hungry = True
        self._dispatcher.pump()

    def _keep_ticking(self) -> None:
        if not self._ticks:
            self._ticks = True
            self._alarms.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticks = False
        if not self.book.entries:
            return
        self._keep_ticking()
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        for entry in self.book:
            record = entry.record
            if entry.is_wanted:
                entry.close_reason = self._why_close(entry, now, now_us)
                if record.state is ClusterState.PENDING and record.epoch == 0 and not entry.held:
                    entry.fail_reason = self._why_impossible(record.spec, record.kind)
                if record.state is ClusterState.STARTING and now - entry.starting_since > START_S:
                    self._time_out_start(entry)
            settled = record.state is ClusterState.RUNNING and all(
                held.lease.state is SlotLeaseState.JOINED and not held.retires for held in entry.held.values()
            )
            if not settled or not entry.is_wanted:
                self._keeper.touch(entry)

    def _time_out_start(self, entry: Entry) -> None:
        handle = self._agents.get(entry.record.agent or "")
        if handle is not None and handle.connected:  # else its lease decides
            self.hearing.end_scheduler(entry, f"its scheduler did not start within {START_S:.0f} s on {handle.name}")

    def _why_close(self, entry: Entry, now: float, now_us: int) -> str | None:
        record = entry.record
        spec = record.spec
        if spec.max_lifetime_s is not None and now_us - record.created_us > spec.max_lifetime_s * 1e6:
            return f"its lifetime of {spec.max_lifetime_s:g} s is over"
        idle_s = self._idle_s(entry, now)
        if spec.idle_timeout_s is not None and record.state is ClusterState.RUNNING and idle_s > spec.idle_timeout_s:
            return f"nothing was computed on it for {spec.idle_timeout_s:g} s"
        if record.kind is ClusterKind.JOB and not self._jobs.is_under_way(record):
            return "its job's attempt has ended"
        return None

    def _idle_s(self, entry: Entry, now: float) -> float:
        status = entry.status
        if status is None or status.epoch != entry.record.epoch or status.idle_s <= 0:
            return 0.0
        return max(0.0, min(status.idle_s + now - entry.status_at, now - entry.used_since))

    # ------------------------------------------------------------------ requests

    async def create(self, new: NewCluster, csr: bytes | None = None, *, waits_s: float = 0.0) -> ClusterRecord:
        """Record a cluster and begin to bring it up; durable when this returns (``pending`` or ``starting``).

        Parameters
        ----------
        csr
            Certificate request (PEM) of the first client: it is signed as soon as the scheduler is there, so that `sign`
            with the same request answers at once.
        waits_s
            How long it waits already: a job's cluster has its job's place in the line.

        Raises
        ------
        Conflict
            If a living cluster of the tenant has the name, or the id was used before.
        QuotaExceeded
            If the user has as many clusters as the server allows.
        ClusterImpossible
            If no agent that there is could ever give what is asked, or the server allows no cluster so many workers.
        Draining, LedgerUnavailable
            Nothing was made.
        """
        if self._dispatcher.paused:
            raise Draining("the server is shutting down; ask again in a moment", retry_after_s=5)
        owner = (new.tenant, new.user)
        if (under_way := self._under_way.get(new.cluster_id)) is not None:
            return await asyncio.shield(under_way)
        if self.book.made_by(new.cluster_id) is not None:
            raise Conflict(f"the cluster {new.cluster_id} was made before", cluster_id=new.cluster_id)
        self._check_size(new)
        if new.kind is ClusterKind.USER:
            living = self.book.living(owner) + self._creating.get(owner, 0)
            if living >= self._max_per_user:
                raise QuotaExceeded(
                    f"{new.user} has {living} clusters, as many as one user may have here: close one first"
                    f" (`dask-fleet clusters list` names them), or raise max_clusters_per_user",
                    limit=self._max_per_user,
                )
        self._creating[owner] = self._creating.get(owner, 0) + 1
        # The caller may go away; what is recorded must be in the book.
        task = asyncio.create_task(self._create(new, csr, waits_s), name=f"create-{new.cluster_id}")
        self._under_way[new.cluster_id] = task
        task.add_done_callback(lambda _: self._created(owner, new.cluster_id))
        return await asyncio.shield(task)

    def _created(self, owner: tuple[str, str], cluster_id: str) -> None:
        del self._under_way[cluster_id]
        left = self._creating[owner] - 1
        if left:
            self._creating[owner] = left
        else:
            del self._creating[owner]

    async def _create(self, new: NewCluster, csr: bytes | None, waits_s: float) -> ClusterRecord:
        spare = self.spares.choose(new)
        if spare is not None:
            if csr is not None:  # signed while it is recorded: the answer has both
                spare.csr = csr
                self._ahead.begin(spare)
            adopted = await self.spares.adopt(spare, new)
            if adopted is not None:
                self._changed()
                return adopted
        record = await self._ledger.create_cluster(new)
        entry = Entry(record, now=self._clock.monotonic() - waits_s)
        entry.csr = csr
        self.book.add(entry)
        log.info("cluster created", extra={"action": "cluster_created", "cluster": record.cluster_id, "user": record.user})
        self._keep_ticking()
        self._changed()
        return record

    def _check_workers(self, n_workers: int) -> None:
        if self.max_workers is not None and n_workers > self.max_workers:  # not a quota: it is of no use to ask again later
            raise ClusterImpossible(
                f"a cluster may have at most {self.max_workers} workers here, not {n_workers}: ask for fewer,"
                " or raise max_cluster_workers", limit=self.max_workers,
            )  # fmt: skip

    def _check_size(self, new: NewCluster) -> None:
        spec = new.spec
        self._check_workers(spec.n_workers)
        why = self._why_impossible(new.spec, new.kind)
        if why is not None:
            raise ClusterImpossible(why)

    def _why_impossible(self, spec: ClusterSpec, kind: ClusterKind) -> str | None:
        """Say why no agent that there is could ever give what is asked; ``None`` if one could, or may still come back."""
        if not self.hearing.is_settled:
            return None
        if spec.pool not in self.hearing.pools:
            known = ", ".join(repr(pool) for pool in sorted(self.hearing.pools))
            return f"there is no pool {spec.pool!r}; the pools are: {known}"
        hosts = self._slots.hosts(absent=True)
        share = 0.0 if kind is ClusterKind.JOB else self._slots.job_share
        return placing.impossible(spec.pool, size_of(spec), hosts, job_share=share)

    async def wait(self, cluster_id: str, timeout_s: float, *, workers: bool = False) -> ClusterRecord:
        """Return the cluster once it runs or has ended, or as it is after `timeout_s`.

        Parameters
        ----------
        workers
            Wait also for the workers that it can have for now: those whose slots were granted, and one at least.

        Raises
        ------
        NotFound
            If there is none.
        """
        return await self._wait(cluster_id, timeout_s, _is_complete if workers else _is_up)

    async def _wait(self, cluster_id: str, timeout_s: float, done: Callable[[Entry], bool]) -> ClusterRecord:
        entry = self.book.entries.get(cluster_id)
        if entry is None:
            return await self._ended(cluster_id)
        deadline = self._clock.monotonic() + timeout_s
        while not done(entry):
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                break
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            try:
                async with asyncio.timeout(left_s):
                    await waiter
            except TimeoutError:
                break
            finally:
                if waiter in entry.waiters:
                    entry.waiters.remove(waiter)
        return entry.record

    async def _ended(self, cluster_id: str) -> ClusterRecord:
        record = await self._ledger.get_cluster(cluster_id)
        if record is None:
            raise NotFound(_NO_SUCH_CLUSTER)
        return record

    async def sign(self, cluster_id: str, csr: bytes, *, role: str = "client") -> tuple[bytes, bytes]:
        """Return a certificate for the request and the cluster's authority (PEM both), from the agent of its scheduler.

        Raises
        ------
        NotFound
            If there is no such cluster.
        Conflict
            If it does not run (``cluster_state`` says how it stands).
        BadRequest
            If the agent refuses the request.
        AgentUnreachable
            If the agent of its scheduler does not answer.
        """
        entry = self.book.entries.get(cluster_id)
        if entry is None:
            record = await self._ended(cluster_id)
            raise Conflict(f"the cluster {record.name!r} is {record.state}", cluster_state=str(record.state))
        return await self._ahead.take(entry, csr) or await self._signer.sign(entry, csr, role=role)

    def _opened(self, entry: Entry) -> None:
        """Its scheduler has come up."""
        self.spares.note(entry.record)
        self._ahead.begin(entry)

    def _lost(self, entry: Entry, why: str) -> None:
        self._jobs.lost(entry, why)

    def attempt_ended(self, seq: int, attempt: int) -> None:
        """An attempt has ended, one way or the other: so does its cluster."""
        entry = self.book.entries.get(self.book.by_attempt.get((seq, attempt), ""))
        if entry is not None and entry.is_wanted:
            entry.close_reason = "its job's attempt has ended"
            self._keeper.touch(entry)

    async def scale(self, cluster_id: str, n_workers: int, *, leave: Sequence[str] = ()) -> ClusterRecord:
        """Change how many workers the cluster is to have; workers come and go afterwards.

        Parameters
        ----------
        leave
            Names of the workers that are to go first, if any are.

        Raises
        ------
        NotFound, Conflict, ClusterImpossible
            There is none; it is closing or has ended; no cluster may have so many.
        """
        entry = self.book.entries.get(cluster_id)
        if entry is None or not entry.is_wanted:
            record = await self._ended(cluster_id)
            raise Conflict(f"the cluster {record.name!r} is {record.state} and cannot be scaled; create a new one",
                           cluster_state=str(record.state))
        self._check_workers(n_workers)
        task = asyncio.create_task(self._scale(entry, n_workers, tuple(leave)), name=f"scale-{cluster_id}")
        return await asyncio.shield(task)

    async def _scale(self, entry: Entry, n_workers: int, leave: Sequence[str]) -> ClusterRecord:
        scaled = await self._ledger.scale_cluster(entry.record.cluster_id, n_workers)
        if scaled is None:
            raise Conflict(f"the cluster {entry.record.name!r} is being closed", cluster_state=str(ClusterState.CLOSING))
        # Only the target: what else has happened meanwhile is the keeper's to take into the book.
        entry.record = replace(entry.record, spec=scaled.spec)
        entry.leave_first.update(leave)
        entry.sheds = False  # its user says now how many
        entry.keep_kept()
        wake(entry)
        self._keeper.touch(entry)
        self._changed()
        return entry.record

    async def close(self, cluster_id: str, reason: str) -> ClusterRecord:
        """Begin to close a cluster; one that is closing or has ended stays as it is. `wait_closed` waits for the end.

        Raises
        ------
        NotFound
            If there is none.
        """
        entry = self.book.entries.get(cluster_id)
        if entry is None:
            return await self._ended(cluster_id)
        if entry.is_wanted:
            entry.close_reason = reason
            self._keeper.touch(entry)
            await self._wait(cluster_id, _CLOSE_RECORDED_S, lambda entry: entry.record.state not in _LIVING)
        return entry.record

    async def wait_closed(self, cluster_id: str, timeout_s: float) -> ClusterRecord:
        """Return the cluster once it has ended, or as it is after `timeout_s`."""
        return await self._wait(cluster_id, timeout_s, lambda entry: entry.record.state.is_terminal)

    async def find(self, tenant: str, name_or_id: str) -> ClusterRecord:
        """Return the living cluster of the tenant with that name, or the one with that id, living or ended; never a spare.

        One that was handed out to a request is found by the id that the request would have made, too.

        Raises
        ------
        NotFound
            If there is none: the same for one that never was, and for another tenant's.
        """
        for entry in self.book:
            record = entry.record
            if record.kind is ClusterKind.SPARE or record.tenant != tenant or record.state.is_terminal:
                continue
            if name_or_id and name_or_id in {record.name, record.cluster_id, record.spec.requested_as}:
                return record
        ended = await self._ledger.get_cluster(name_or_id)
        if ended is None or ended.tenant != tenant or ended.kind is ClusterKind.SPARE:
            raise NotFound(_NO_SUCH_CLUSTER)
        return ended

    async def list(
        self, tenant: str, *, living: bool = True, spares: bool = False, limit: int = 1000
    ) -> Sequence[ClusterRecord]:
        """Return the tenant's clusters, newest first: living ones, or also those that ended; with its spares if asked."""
        return await self._ledger.clusters(tenant=tenant, living=living, spares=spares, limit=limit)

    async def events(self, record: ClusterRecord) -> Sequence[ClusterEventRecord]:
        """Return the story of a cluster, oldest first."""
        return await self._ledger.cluster_events(record.cluster_id)

    def status(self, record: ClusterRecord) -> ClusterView:
        """Say how a cluster is just now."""
        entry = self.book.entries.get(record.cluster_id)
        if entry is None:
            return ClusterView(workers=0, wanted=record.spec.n_workers)
        status = entry.status
        return ClusterView(
            workers=entry.workers,
            joining=entry.joining,
            wanted=entry.record.spec.n_workers,
            waiting_for=waiting_for(
                entry,
                self._slots.hosts(),
                self.book,
                now=self._clock.monotonic(),
                draining=self._dispatcher.paused,
                job_share=0.0 if record.kind is ClusterKind.JOB else self._slots.job_share,
            ),
            tasks=status.tasks if status is not None else 0,
            clients=status.clients if status is not None else 0,
            idle_s=self._idle_s(entry, self._clock.monotonic()),
        )

    async def need(self, handle: AgentHandle, frame: NeedCluster) -> None:
        """Give an attempt a cluster of its own; answered by a `JobCluster` to its agent, also where there will be none."""
        await self._jobs.need(handle, frame)


def _is_up(entry: Entry) -> bool:
    return entry.record.state is ClusterState.RUNNING or entry.record.state.is_terminal


def _is_complete(entry: Entry) -> bool:
    return entry.is_complete or entry.record.state not in _LIVING
