"""Gives free slots to clusters: the first worker of each before and after jobs had their turn, growth only after them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from dask_fleet.controller.agents import AgentHandle, Agents
from dask_fleet.controller.clusters import placing
from dask_fleet.controller.clusters.book import Book, Entry, Held
from dask_fleet.controller.clusters.capacity import Host, size_of
from dask_fleet.controller.clusters.placing import Grant, Need, Rooms
from dask_fleet.controller.fair_queue import Lane
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.clusters import ClusterKind, SlotLease
from dask_fleet.model.ids import random_id
from dask_fleet.plugins.clock import Clock


class Spares(Protocol):
    """Who keeps spare clusters."""

    in_use: bool
    """Whether there are any."""

    def give_way_to_jobs(self, lanes: Collection[Lane]) -> None:
        """Close those whose slots queued runs could use, or runs that were given ahead."""

    def slots_on(self, agent: str) -> int:
        """Return how many slots of an agent they hold."""

    def give_way(self, needs: Sequence[Need]) -> None:
        """Close those whose slots clusters need."""


class SlotGiver:
    """Decides who gets which slots now. It plans in the book only; `touch` sees to what follows.

    Parameters
    ----------
    since_head
        Returns since when (monotonic clock) the queued run waits that would get the next slot, or ``None``.
    job_share
        Part of each pool's slots that users' clusters may not take.
    """

    def __init__(
        self,
        *,
        book: Book,
        agents: Agents,
        clock: Clock,
        touch: Callable[[Entry], None],
        since_head: Callable[[], float | None],
        job_share: float = 0.0,
    ) -> None:
        self._book = book
        self._agents = agents
        self._clock = clock
        self._touch = touch
        self._since_head = since_head
        self._turns = placing.Turns()
        self.job_share = job_share
        self.hungry = False
        """Whether a cluster lacks anything: while none does, jobs pay nothing for clusters."""
        self.spares: Spares | None = None

    def hosts(self, pool: str | None = None, *, absent: bool = False) -> list[Host]:
        """Return the connected agents, of one pool or of all; with those that are expected back, if asked."""
        return [
            self._host(handle)
            for handle in self._agents
            if (handle.connected or absent) and pool in {None, handle.pool}
        ]

    def _host(self, handle: AgentHandle) -> Host:
        return Host(
            handle.agent_id, pool=handle.pool, slots=handle.slots, nthreads=handle.nthreads, free=handle.free,
            memory_bytes=handle.memory_bytes, declared=handle.resources,
            resources=self._book.resources_left(handle) if handle.resources else None,
        )  # fmt: skip

    def rooms(self) -> Rooms:
        """Return how many slots of each pool users' clusters, and those kept ready for them, may still take."""
        if self.job_share <= 0:
            return {}
        slots: Rooms = {}
        for host in self.hosts():
            slots[host.pool] = slots.get(host.pool, 0) + host.slots
        rooms = {pool: there - placing.kept_for_jobs(there, self.job_share) for pool, there in slots.items()}
        for entry in self._book:
            record = entry.record
            if record.kind is not ClusterKind.JOB and record.spec.pool in rooms:
                rooms[record.spec.pool] -= sum(held.lease.threads for held in entry.held.values())
        return rooms

    # ------------------------------------------------------------------ the two turns of clusters

    def before_jobs(self) -> None:
        """Give first workers to clusters that wait longer than the next job does, and promise slots to the first of those
        that find none.
        """
        for each in self._agents:
            each.promised = 0
        needs = [need for need in map(self._need, self._book) if need is not None and self._is_first(need)]
        if not needs:
            return
        head = self._since_head()
        if head is not None:
            needs = [need for need in needs if need.urgent or need.since <= head]
        grants, promise = placing.first_workers(needs, self.hosts(), self._turns, self.rooms())
        self._carry_out(grants)
        if promise is not None:
            need, host = promise
            handle = self._agents.get(host.agent)
            assert handle is not None, "hosts are made of handles"
            handle.promised = host.slots_for(need.size)

    def after_jobs(self) -> None:
        """Give what jobs have left: first workers, then growth; open schedulers that need no slots."""
        needs = [need for need in map(self._need, self._book) if need is not None]
        rooms = self.rooms()
        waiting = [need for need in needs if self._is_first(need)]
        grants, _ = placing.first_workers(waiting, self.hosts(), self._turns, rooms)
        self._carry_out(grants)
        # Whoever still has no worker comes before those that have one: while anybody waits for its first, on slots that
        # would do for it, nobody grows on them.
        needs = [need for need in map(self._need, self._book) if need is not None]
        first = [need for need in needs if self._is_first(need) and placing.has_room(need, rooms)]
        hosts = [
            host for host in self.hosts()
            if not any(need.pool == host.pool and host.slots_for(need.size) <= host.slots for need in first)
        ]
        self._carry_out(placing.growth([need for need in needs if not self._is_first(need)], hosts, self._turns, rooms))
        lacking = [need for need in map(self._need, self._book) if need is not None]
        if lacking and self.has_spares and self.spares is not None:
            self.spares.give_way(lacking)
        idle_schedulers = self._open_without_slots()
        self.hungry = bool(lacking) or idle_schedulers
        self._turns.forget({need.owner for need in lacking})

    # ------------------------------------------------------------------ spares

    @property
    def has_spares(self) -> bool:
        """Whether slots are lent to clusters that nobody has asked for yet."""
        return self.spares is not None and self.spares.in_use

    def make_way(self, lanes: Collection[Lane]) -> None:
        """See `SlotTurns.make_way`."""
        if self.spares is not None:
            self.spares.give_way_to_jobs(lanes)

    def spare_slots(self, agent: str) -> int:
        """See `SlotTurns.spare_slots`."""
        return 0 if self.spares is None else self.spares.slots_on(agent)

    def lend(self, entry: Entry, agents: Sequence[str]) -> None:
        """Lend slots for one worker on each of these agents."""
        self._carry_out([Grant(entry.record.cluster_id, agent) for agent in agents])

    # ------------------------------------------------------------------ inside

    def _need(self, entry: Entry) -> Need | None:
        record = entry.record
        if not entry.is_wanted or record.kind is ClusterKind.SPARE:  # a spare gets its slots when it is made, or never
            return None
        live = len(entry.live)
        missing = record.spec.n_workers - live
        if missing <= 0 or entry.setbacks.not_before > self._clock.monotonic():
            return None
        size = size_of(record.spec)
        return Need(
            cluster_id=record.cluster_id,
            owner=entry.owner,
            pool=record.spec.pool,
            threads=size.threads,
            memory_bytes=size.memory_bytes,
            resources=size.resources,
            missing=missing,
            since=entry.since,
            near=record.agent or entry.open_on,
            is_users=record.kind is not ClusterKind.JOB,
            urgent=live == 0 and record.epoch > 0,
        )

    def _is_first(self, need: Need) -> bool:
        return not self._book.entries[need.cluster_id].live

    def _carry_out(self, grants: list[Grant]) -> None:
        for grant in grants:
            entry = self._book.entries[grant.cluster_id]
            record, handle = entry.record, self._agents.get(grant.agent)
            assert handle is not None, "hosts are made of handles"
            threads = record.spec.threads_per_worker
            if record.state is ClusterState.PENDING and entry.open_on is None:
                entry.open_on = grant.agent
            lease = SlotLease(
                lease_id=random_id("lease"),
                cluster_id=record.cluster_id,
                epoch=entry.epoch_to_be,
                agent=grant.agent,
                worker=str(entry.next_worker),
                # More than its threads where its memory takes more of the host.
                threads=self._host(handle).slots_for(size_of(record.spec)),
                # A shared process has as many threads as its agent gave it; more take a process of their own.
                fresh=(record.kind is not ClusterKind.JOB and not record.spec.shared) or threads > handle.nthreads,
            )
            entry.next_worker += 1
            self._book.hold(entry, Held(lease, recorded=False, since=self._clock.monotonic()))
            self._touch(entry)

    def _open_without_slots(self) -> bool:
        """Open schedulers that need no slot: of clusters without workers, and of those that lost theirs, at once.

        Returns whether any still waits for an agent.
        """
        waits = False
        for entry in self._book:
            record = entry.record
            if record.state is not ClusterState.PENDING or entry.open_on is not None or not entry.is_wanted:
                continue
            if record.spec.n_workers == 0 or entry.recovers:
                host = placing.scheduler_host(self.hosts(), record.spec.pool)
                if host is None:
                    waits = True
                    continue
                entry.open_on = host.agent
                self._touch(entry)
        return waits
