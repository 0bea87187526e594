"""Keeps spare clusters: makes them on slots that nobody wants, hands them out, closes them once anybody wants the slots.

What there should be, `spare_plan` decides; here it is compared with what there is, now and then, and acted upon. A spare is
a cluster as any other to ledger, keeper and agents, of the kind ``spare``; it becomes a user's in one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from dask_fleet.controller.agents import Agents
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.clusters import spare_plan
from dask_fleet.controller.clusters.book import Book, Entry
from dask_fleet.controller.clusters.capacity import size_of
from dask_fleet.controller.clusters.orders import open_frame
from dask_fleet.controller.clusters.placing import Need
from dask_fleet.controller.clusters.slots import SlotGiver
from dask_fleet.controller.clusters.spare_plan import ACTIVE_S, Asked, Kept, Room
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.controller.fair_queue import Lane
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.clusters import ClusterKind, ClusterRecord, ClusterSpec, NewCluster
from dask_fleet.model.errors import FleetError
from dask_fleet.model.ids import random_id
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

CALM_S = 0.3
"""A spare is made when no cluster has been asked for for so long: who asked has the processors first."""
LOOK_S = 1.0
"""How often it is looked whether there is room, while any tenant is active."""
_IN_VAIN_S = (5.0, 300.0)
"""Wait after a spare that nobody got, because others wanted its slots or it broke: first, and at most, doubled each time."""


class SpareClusters:
    """The spares of all pools.

    Parameters
    ----------
    per_pool
        How many each pool keeps at most.
    touch
        See `Keeper.touch`.
    added
        Called when a cluster has been added to the book.
    """

    def __init__(
        self,
        *,
        book: Book,
        ledger: Ledger,
        agents: Agents,
        dispatcher: Dispatcher,
        slots: SlotGiver,
        alarms: Alarms,
        clock: Clock,
        spawn: Spawn,
        touch: Callable[[Entry], None],
        added: Callable[[], None],
        per_pool: int,
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._agents = agents
        self._dispatcher = dispatcher
        self._slots = slots
        self._alarms = alarms
        self._clock = clock
        self._spawn = spawn
        self._touch = touch
        self._added = added
        self._per_pool = per_pool
        self.in_use = False
        """Whether there are any whose slots could be wanted."""
        self._entries: list[Entry] = []
        self._asked: dict[tuple[str, str], Asked] = {}
        """By pool and tenant."""
        self._asked_at = 0.0
        self._making: set[str] = set()
        self._in_vain: dict[str, tuple[float, float]] = {}
        """Of pools whose last spares were of no use: until when to wait, and how long that was."""
        self._looks = False

    # ------------------------------------------------------------------ who asks

    def take_up(self) -> None:
        """At start, with the ledger's clusters in the book: learn who is active."""
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        for entry in sorted(self._book, key=lambda entry: entry.record.created_us):
            record = entry.record
            if record.kind is ClusterKind.SPARE and record.state is not ClusterState.RUNNING:
                entry.close_reason = entry.close_reason or "the server ended while it was made"
            elif record.kind is not ClusterKind.JOB and not record.state.is_terminal:
                self._note(record, now - max(0, now_us - record.created_us) / 1e6)
        self._count()
        self._look_again()

    def note(self, record: ClusterRecord) -> None:
        """A cluster of a user has come up: the next one will be like it."""
        if self._per_pool and record.kind is ClusterKind.USER:
            self._asked_at = self._clock.monotonic()
            self._note(record, self._asked_at)
            self._alarms.after(CALM_S, self._look)
            self._look_again()

    def _note(self, record: ClusterRecord, at: float) -> None:
        if not record.spec.shared:
            self._asked[record.spec.pool, record.tenant] = Asked(record.tenant, record.spec, at)

    # ------------------------------------------------------------------ handing out

    def choose(self, new: NewCluster) -> Entry | None:
        """Return a spare that does for a request, the one nearest to its size, or ``None``. `adopt` it at once."""
        if new.kind is not ClusterKind.USER or not self._per_pool:
            return None
        fitting = [
            entry
            for entry in self._spares()
            if entry.record.state is ClusterState.RUNNING
            and entry.record.epoch not in entry.ended
            and entry.record.tenant == new.tenant
            and spare_plan.fits(entry.record.spec, new.spec)
            and (handle := self._agents.get(entry.record.agent or "")) is not None
            and handle.connected
        ]
        return min(fitting, key=lambda entry: abs(entry.workers - new.spec.n_workers), default=None)

    async def adopt(self, entry: Entry, new: NewCluster) -> ClusterRecord | None:
        """Hand a spare out; ``None`` if it is none any more. Durable when this returns.

        Raises
        ------
        Conflict, LedgerUnavailable
            As from `Ledger.adopt_spare`; the spare stays one.
        """
        cluster_id = entry.record.cluster_id
        entry.is_taken = True
        self._count()
        try:
            adopted = await self._ledger.adopt_spare(
                cluster_id,
                # A name that was made up is the id of what it names.
                name=cluster_id if new.name == new.cluster_id else new.name,
                user=new.user,
                spec=replace(new.spec, requested_as=new.cluster_id),
            )
        finally:
            entry.is_taken = False
            self._count()
        if adopted is None:
            self._touch(entry)
            return None
        # Its state is the keeper's to take into the book: it may have lost its scheduler since.
        entry.record = replace(
            entry.record, kind=adopted.kind, name=adopted.name, user=adopted.user, spec=adopted.spec,
            created_us=adopted.created_us,
        )  # fmt: skip
        entry.since = entry.used_since = self._clock.monotonic()
        entry.sheds = len(entry.live) > adopted.spec.n_workers
        self._in_vain.pop(adopted.spec.pool, None)
        self._count()
        handle = self._agents.get(entry.record.agent or "")
        if handle is not None and entry.record.state is ClusterState.RUNNING:
            handle.send(open_frame(entry.record))  # it runs: only its limits are news. Said again when the agent comes back.
        log.info(
            "spare cluster handed out",
            extra={"action": "cluster_adopted", "cluster": cluster_id, "tenant": adopted.tenant, "user": adopted.user},
        )
        self._touch(entry)
        self.note(entry.record)
        return entry.record

    # ------------------------------------------------------------------ giving way

    def give_way_to_jobs(self, lanes: Collection[Lane]) -> None:
        """Close the spares on agents that have no slot left for runs of these lanes, or for runs that were given ahead."""
        for entry in self._spares():
            for agent in {held.lease.agent for held in entry.held.values()}:
                handle = self._agents.get(agent)
                if handle is None or handle.free > 0:
                    continue
                if handle.free < 0 or any(handle.can_run(lane) for lane in lanes):
                    self._close(entry, "a job wants its slots")
                    break

    def give_way(self, needs: Sequence[Need]) -> None:
        """Close the spares whose slots these clusters need."""
        spares = {entry.record.cluster_id: entry for entry in self._spares()}
        free: dict[str, int] = {}
        for host in self._slots.hosts():
            free[host.pool] = free.get(host.pool, 0) + max(host.free, 0)
        pools = {cluster_id: entry.record.spec.pool for cluster_id, entry in spares.items()}
        for cluster_id in spare_plan.gives_way([_kept(entry) for entry in spares.values()], needs, free, pools):
            self._close(spares[cluster_id], "another cluster wants its slots")

    def slots_in(self, pool: str) -> int:
        """Return how many slots of a pool are to be had by closing its spares."""
        return sum(_kept(entry).slots for entry in self._spares() if entry.record.spec.pool == pool) if self.in_use else 0

    def slots_on(self, agent: str) -> int:
        """Return how many slots of an agent are to be had so."""
        return sum(
            held.lease.threads for entry in self._spares() for held in entry.held.values() if held.lease.agent == agent
        )

    def _close(self, entry: Entry, why: str, *, in_vain: bool = True) -> None:
        entry.close_reason = why
        self._count()
        if in_vain:
            self._was_in_vain(entry.record.spec.pool)
        log.info(
            "spare cluster closed: %s", why, extra={"action": "spare_closed", "cluster": entry.record.cluster_id}
        )
        self._touch(entry)

    def _was_in_vain(self, pool: str) -> None:
        first, most = _IN_VAIN_S
        _, last_s = self._in_vain.get(pool, (0.0, 0.0))
        wait_s = min(most, max(first, 2 * last_s))
        self._in_vain[pool] = self._clock.monotonic() + wait_s, wait_s

    # ------------------------------------------------------------------ looking

    def _look_again(self) -> None:
        if not self._looks and (self._asked or self.in_use):
            self._looks = True
            self._alarms.after(LOOK_S, self._looked)

    def _looked(self) -> None:
        self._looks = False
        self._look()
        self._look_again()

    def _look(self) -> None:
        """Compare what there is with what there should be."""
        now = self._clock.monotonic()
        for key, asked in list(self._asked.items()):
            if now - asked.at > ACTIVE_S:
                del self._asked[key]
        self._count()
        for entry in list(self._spares()):
            if len(entry.live) < entry.record.spec.n_workers:
                self._close(entry, "it lost a worker")
        is_calm = now - self._asked_at >= CALM_S and not self._dispatcher.paused
        for pool in {pool for pool, _ in self._asked} | {entry.record.spec.pool for entry in self._spares()}:
            asked_here = [asked for (where, _), asked in self._asked.items() if where == pool]
            kept = [_kept(entry) for entry in self._spares() if entry.record.spec.pool == pool]
            wanted = spare_plan.wanted_now(asked_here, per_pool=self._per_pool, now=now)
            missing, useless = spare_plan.compare(wanted, kept)
            for one in useless:
                self._close(self._book.entries[one.cluster_id], "nobody is expected to want it any more", in_vain=False)
            if missing and is_calm and pool not in self._making and now >= self._in_vain.get(pool, (0.0, 0.0))[0]:
                self._begin(pool, missing[0])

    def _begin(self, pool: str, asked: Asked) -> None:
        rooms = self._rooms(pool)
        spec = spare_plan.spec_for(asked.spec, rooms)
        if spec is not None and self._may_have(spec) and spare_plan.place(spec, rooms) is not None:
            self._making.add(pool)
            self._spawn(self._make(asked.tenant, spec), f"spare-{pool}")

    async def _make(self, tenant: str, spec: ClusterSpec) -> None:
        cluster_id = random_id("c")
        try:
            record = await self._ledger.create_cluster(
                NewCluster(
                    cluster_id=cluster_id, name=cluster_id, tenant=tenant, user="", kind=ClusterKind.SPARE, spec=spec
                )
            )
        except FleetError as exc:
            log.warning("no spare cluster: %s", exc, extra={"action": "no_spare_cluster"})
            self._was_in_vain(spec.pool)
            return
        finally:
            self._making.discard(spec.pool)
        entry = Entry(record, now=self._clock.monotonic())
        self._book.add(entry)
        self._added()
        agents = spare_plan.place(spec, self._rooms(spec.pool)) if self._may_have(spec) else None
        if agents is None or self._dispatcher.paused:
            self._close(entry, "its slots were wanted before it had them", in_vain=False)
            return
        log.info("spare cluster", extra={"action": "spare_made", "cluster": cluster_id, "tenant": tenant})
        self._slots.lend(entry, agents)
        if not agents:  # it has no workers, and its scheduler takes no slots
            self._slots.hungry = True
            self._dispatcher.pump()
        self._count()
        self._look_again()

    # ------------------------------------------------------------------ inside

    @property
    def _nobody_waits(self) -> bool:
        """Whether neither a cluster nor a queued run wants slots."""
        return not self._slots.hungry and not len(self._dispatcher.queue)

    def _may_have(self, spec: ClusterSpec) -> bool:
        """Whether its slots are wanted by nobody, and would leave jobs theirs when it is a user's."""
        takes = [room.host.slots_for(size_of(spec)) for room in self._rooms(spec.pool)]
        taken = spec.n_workers * max(takes, default=spec.threads_per_worker)
        return self._nobody_waits and self._slots.rooms().get(spec.pool, taken) >= taken

    def _rooms(self, pool: str) -> list[Room]:
        rooms = []
        for host in self._slots.hosts(pool):
            handle = self._agents.get(host.agent)
            rooms.append(Room(host, takes_jobs=handle is not None and bool(handle.versions)))
        return rooms

    def _spares(self) -> Iterator[Entry]:
        """Return the spares that are to be kept, and are not being handed out."""
        return (entry for entry in self._entries if _is_kept(entry))

    def _count(self) -> None:
        """Look for them among all clusters; between two looks those that are none any more are passed over."""
        self._entries = [entry for entry in self._book if _is_kept(entry)]
        self.in_use = bool(self._entries)


def _is_kept(entry: Entry) -> bool:
    return entry.record.kind is ClusterKind.SPARE and entry.is_wanted and not entry.is_taken


def _kept(entry: Entry) -> Kept:
    record = entry.record
    return Kept(record.cluster_id, record.tenant, record.spec, sum(held.lease.threads for held in entry.held.values()))
