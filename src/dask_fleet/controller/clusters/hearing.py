"""What agents say of clusters becomes facts in the book; `Keeper` sees to what follows from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dask_fleet.controller.agents import AgentHandle, Agents, agent_home
from dask_fleet.controller.clusters.book import Book, Entry, Held, wake
from dask_fleet.controller.clusters.orders import open_frame
from dask_fleet.controller.clusters.signing import Signer
from dask_fleet.model.cluster_states import ClusterState, SlotLeaseState
from dask_fleet.plugins.clock import Clock
from dask_fleet.protocol.cluster_frames import (
    CloseCluster,
    ClusterGone,
    ClusterOpened,
    ClusterStatus,
    Retired,
    Signed,
    SlotsJoined,
    SlotsLeft,
    TakeSlots,
    WantSignature,
    WorkersDeaf,
)
from dask_fleet.protocol.frames import Hello

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

ClusterFact = (
    ClusterOpened | ClusterGone | ClusterStatus | Signed | WantSignature | SlotsJoined | SlotsLeft | Retired | WorkersDeaf
)

_HAS_SCHEDULER = frozenset({ClusterState.STARTING, ClusterState.RUNNING, ClusterState.CLOSING})


class Hearing:
    """Takes the frames of agents; none of them blocks the loop. Whatever is not of the present epoch is refused here."""

    def __init__(
        self,
        *,
        book: Book,
        agents: Agents,
        clock: Clock,
        touch: Callable[[Entry], None],
        changed: Callable[[], None],
        signer: Signer,
        spawn: Spawn,
    ) -> None:
        self._book = book
        self._agents = agents
        self._clock = clock
        self._touch = touch
        self._changed = changed
        self._signer = signer
        self._spawn = spawn
        self._awaited: set[str] = set()
        """Homes of agents that were there before this server, and have neither come back nor been given up yet."""
        self.pools: set[str] = set()
        """Pools that an agent of was ever heard of."""

    # ------------------------------------------------------------------ coming and going

    @property
    def is_settled(self) -> bool:
        """Whether what there is can be judged: an agent is there, and whoever was before this server is back or given up."""
        return bool(self.pools) and not self._awaited

    def await_return(self, agent: str) -> None:
        """At start: an agent whose lease still runs was there before this server."""
        self._awaited.add(agent_home(agent))

    def gave_up(self, agent: str) -> None:
        """Whoever still waits for an agent need not: its lease is over."""
        self._awaited.discard(agent_home(agent))

    def expect(self, agent: str) -> None:
        """At start: an agent that lends slots, or runs a scheduler, and will come back or be found lost."""
        self._agents.ensure(agent, agent_home(agent))
        self._book.mirror(agent)

    def attached(self, handle: AgentHandle, hello: Hello, *, is_ours: bool) -> None:
        """An agent has said what it runs: go on with what is right, end what is not, mend what got lost on the way.

        Parameters
        ----------
        is_ours
            Whether it was this ledger that it worked for.
        """
        self.pools.add(handle.pool)
        self._awaited.discard(handle.home)
        schedulers = {(ref.cluster, ref.epoch) for ref in hello.clusters}
        leases = set(hello.leases)
        book, agent = self._book, handle.agent_id
        book.forget_strays(agent)
        for cluster, epoch in schedulers:
            entry = book.entries.get(cluster) if is_ours else None
            record = None if entry is None else entry.record
            is_over = entry is not None and epoch in entry.ended  # given up, though the ledger may not have it yet
            if (
                record is None or is_over
                or (record.epoch, record.agent) != (epoch, agent) or record.state not in _HAS_SCHEDULER
            ):
                _refused(handle, "a scheduler", cluster=cluster, epoch=epoch)
                handle.send(CloseCluster(cluster, epoch))
        for lease_id in leases:
            if not is_ours or self._of_lease(handle, lease_id) is None:
                _refused(handle, "a worker", lease=lease_id)
                book.stray(agent, lease_id)
                handle.send(TakeSlots(lease_id, grace_s=0.0))
        for entry in book:
            record = entry.record
            concerned = False
            if record.agent == agent and record.state in _HAS_SCHEDULER:
                concerned, entry.asked_at = True, None
                runs = is_ours and (record.cluster_id, record.epoch) in schedulers
                if not runs and record.state is not ClusterState.STARTING:
                    entry.ended.setdefault(record.epoch, "its process ended while its agent could not be heard")
            for held in entry.held.values():
                if held.lease.agent != agent or not held.recorded:
                    continue
                concerned, held.sent_at, held.taken_at = True, None, None
                runs = is_ours and held.lease.lease_id in leases
                if not runs and (held.joined or held.lease.state is not SlotLeaseState.GRANTED):
                    held.left = "its process ended while its agent could not be heard"
            if record.agent == agent:
                for held in entry.retiring:  # its answer may have been lost
                    held.retire_asked_at = None
            if record.spec.requested_as and record.state is ClusterState.RUNNING and record.agent == agent:
                handle.send(open_frame(record))  # handed out while its agent was away: it learns of the limits
            if concerned:
                self._touch(entry)
        book.mirror(agent)
        self._changed()

    def lost(self, agent: str, why: str) -> None:
        """An agent is given up: what it ran for clusters is over."""
        self._book.forget_strays(agent)
        for entry in self._book:
            concerned = False
            record = entry.record
            if record.agent == agent and record.state in _HAS_SCHEDULER:
                concerned = True
                entry.ended.setdefault(record.epoch, why)
            for held in list(entry.held.values()):
                if held.lease.agent == agent:
                    concerned, held.left = True, why
            if entry.open_on == agent:
                concerned, entry.open_on = True, None
                for held in entry.held.values():  # they were to join the scheduler that is opened somewhere else now
                    if not held.recorded:
                        held.left = why
            if concerned:
                self._touch(entry)

    # ------------------------------------------------------------------ talking

    def receive(self, handle: AgentHandle, frame: ClusterFact) -> None:
        """Take one frame."""
        match frame:
            case ClusterOpened():
                entry = self._of_epoch(handle, frame.cluster, frame.epoch)
                if entry is None:
                    _refused(handle, "a scheduler", cluster=frame.cluster, epoch=frame.epoch)
                    handle.send(CloseCluster(frame.cluster, frame.epoch))  # a zombie's
                else:
                    entry.opened = frame
                    self._touch(entry)
            case ClusterGone():
                entry = self._of_epoch(handle, frame.cluster, frame.epoch)
                if entry is not None:
                    entry.ended.setdefault(frame.epoch, frame.why)
                    self._touch(entry)
            case ClusterStatus():
                entry = self._of_epoch(handle, frame.cluster, frame.epoch)
                if entry is not None:
                    entry.status, entry.status_at = frame, self._clock.monotonic()
            case SlotsJoined():
                found = self._of_lease(handle, frame.lease)
                if found is None:
                    _refused(handle, "a worker", lease=frame.lease)
                    self._book.stray(handle.agent_id, frame.lease)
                    handle.send(TakeSlots(frame.lease, grace_s=0.0))
                else:
                    found[1].joined, found[1].address = True, frame.address
                    wake(found[0])  # at once: whoever waits for it need not wait for the disk
                    self._touch(found[0])
            case SlotsLeft():
                found = self._book.find(frame.lease)
                if self._book.stray_left(handle.agent_id, frame.lease):
                    self._changed()
                elif found is not None and found[1].lease.agent == handle.agent_id:
                    found[1].left = frame.why or "it left"
                    found[1].failed = frame.failed
                    self._touch(found[0])
            case Retired():
                entry = self._of_epoch(handle, frame.cluster, frame.epoch)
                if entry is not None:
                    for held in entry.held.values():
                        # Also one that is to stay meanwhile: its scheduler gives it no more tasks, another takes its place.
                        held.retired = held.retired or held.lease.worker in frame.workers
                        if held.retires:
                            held.kept = frame.kept.get(held.lease.worker, held.kept)
                    self._touch(entry)
            case WorkersDeaf():
                entry = self._of_epoch(handle, frame.cluster, frame.epoch)
                for held in [] if entry is None else entry.held.values():
                    if held.address in frame.workers and (agent := self._agents.get(held.lease.agent)) is not None:
                        agent.send(TakeSlots(held.lease.lease_id, grace_s=0.0))  # its slots are lent again when it has left
            case Signed():
                self._signer.signed(frame)
            case WantSignature():
                self._spawn(self._signer.sign_for_agent(handle.agent_id, frame), f"sign-{frame.lease}")

    def end_scheduler(self, entry: Entry, why: str) -> None:
        """Give the present scheduler up, whatever its agent still does with it."""
        record = entry.record
        handle = self._agents.get(record.agent or "")
        if handle is not None:
            handle.send(CloseCluster(record.cluster_id, record.epoch))
        entry.ended.setdefault(record.epoch, why)
        self._touch(entry)

    def _of_epoch(self, handle: AgentHandle, cluster: str, epoch: int) -> Entry | None:
        """Return the cluster whose present scheduler that is. One that was given up is over at once, not only when the
        ledger has it, which may take long: whoever came back with it meanwhile would run it for ever.
        """
        entry = self._book.entries.get(cluster)
        if entry is None or entry.record.epoch != epoch or entry.record.agent != handle.agent_id or epoch in entry.ended:
            return None
        return entry

    def _of_lease(self, handle: AgentHandle, lease_id: str) -> tuple[Entry, Held] | None:
        """Return the lease an agent may run something under. One that has left is about to give its slots back."""
        found = self._book.find(lease_id)
        if found is None or found[1].lease.agent != handle.agent_id or found[1].left is not None:
            return None
        return found


def _refused(handle: AgentHandle, what: str, **names: Any) -> None:
    """Log that something of an earlier epoch, or of a lease that is over, is not taken, and ended."""
    log.warning("%s of before is ended", what, extra={"action": "stale_epoch", "agent": handle.agent_id, **names})
