"""Brings one cluster to what is wanted of it: one step after the other, whatever was said or lost on the way.

What agents and users say only notes a fact in the book and calls `Keeper.touch`. One task for each touched cluster then
compares facts, record and target, records what follows in the ledger, and only after that tells agents. Each step may be
repeated: the ledger's tables and epochs refuse what has happened already, and agents take every frame twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dask_fleet.controller.agents import Agents
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.clusters.book import Book, Entry, Held, wake
from dask_fleet.controller.clusters.orders import close_frame, grant_frame, open_frame
from dask_fleet.model.cluster_states import ClusterEvent, ClusterState, SlotLeaseEvent, SlotLeaseState
from dask_fleet.model.clusters import ClusterChange, ClusterKind, ClusterRecord, SlotLease
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.protocol.cluster_frames import RetireWorkers, TakeSlots

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

REPEAT_S = 15.0
"""After so long without an answer an agent is told again."""
START_S = 60.0
"""A scheduler that does not answer for so long after it was asked for counts as lost."""
KEPT_REPEAT_S = 30.0
"""After so long a scheduler is asked again to move data that nobody could take."""
MOST_LOSSES, LOSSES_WITHIN_S = 3, 60.0
"""So many schedulers in a row are replaced; one more within that time, and something is wrong with the cluster itself."""

_LEDGER_RETRY_S = 0.5
_UNFORESEEN_RETRY_S = 5.0


class Keeper:
    """See the module's text.

    Parameters
    ----------
    changed
        Called when slots may have become free, or are wanted.
    opened
        Called with a cluster whose scheduler has come up.
    lost
        Called with a job's cluster whose scheduler was lost.
    """

    def __init__(
        self,
        *,
        book: Book,
        ledger: Ledger,
        agents: Agents,
        alarms: Alarms,
        clock: Clock,
        spawn: Spawn,
        changed: Callable[[], None],
        opened: Callable[[Entry], None],
        lost: Callable[[Entry, str], None],
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._agents = agents
        self._alarms = alarms
        self._clock = clock
        self._spawn = spawn
        self._changed = changed
        self._opened = opened
        self._lost = lost

    def touch(self, entry: Entry) -> None:
        """Something about a cluster has changed: look at it soon. Many calls at once are one look."""
        entry.is_dirty = True
        if not entry.is_busy:
            entry.is_busy = True
            self._spawn(self._keep(entry), f"cluster-{entry.record.cluster_id}")

    def _touch_later(self, entry: Entry, seconds: float) -> None:
        self._alarms.after(seconds, lambda: self.touch(entry))

    async def _keep(self, entry: Entry) -> None:
        try:
            while entry.is_dirty:
                entry.is_dirty = False
                await self._look(entry)
        except LedgerUnavailable:
            log.warning("cluster postponed", extra={"action": "cluster_postponed", "cluster": entry.record.cluster_id})
            self._touch_later(entry, _LEDGER_RETRY_S)
        except Exception:
            log.exception("cluster not looked after", extra={"action": "cluster_failed", "cluster": entry.record.cluster_id})
            self._touch_later(entry, _UNFORESEEN_RETRY_S)
        finally:
            entry.is_busy = False
            if entry.is_dirty:
                self.touch(entry)

    async def _look(self, entry: Entry) -> None:
        await self._note_leases(entry)
        await self._note_scheduler(entry)
        await self._follow_wishes(entry)
        await self._record_plan(entry)
        await self._let_go(entry)
        self._tell(entry)
        await self._finish(entry)
        wake(entry)
        self._changed()

    # ------------------------------------------------------------------ what agents have said

    async def _note_leases(self, entry: Entry) -> None:
        """Record which workers have joined and which have left."""
        joined = [
            (held, SlotLeaseEvent.JOINED, "")
            for held in entry.held.values()
            if held.recorded and held.joined and held.lease.state is SlotLeaseState.GRANTED
        ]
        if joined:
            for held, _, _ in joined:
                entry.setbacks.joined(held.lease.epoch)
            await self._change_slots(entry, joined)
        left = []
        for held in entry.held.values():
            if held.recorded and held.left is not None:
                self._note_setback(entry, held, held.left)
                leaving = held.lease.state is SlotLeaseState.LEAVING
                left.append((held, SlotLeaseEvent.LEFT if leaving else SlotLeaseEvent.LAPSE, held.left))
        await self._change_slots(entry, left)
        joins = any(held.joined or held.left is None for held in entry.live)
        if left and entry.is_wanted and not joins and entry.setbacks.are_hopeless(entry.record.epoch):
            entry.close_reason = f"its workers cannot start: {entry.setbacks.why}"

    def _note_setback(self, entry: Entry, held: Held, why: str) -> None:
        """Let some time pass before the next is tried, if it was a worker that its cluster still waited for."""
        record, now = entry.record, self._clock.monotonic()
        is_over = not entry.is_wanted or held.lease.epoch != record.epoch or record.epoch in entry.ended
        if held.lease.state is not SlotLeaseState.GRANTED or is_over:
            return
        delay_s = entry.setbacks.add(why, own=held.failed, granted_at=held.since, now=now, jitter=random.random())
        if delay_s is not None:
            log.warning(
                "worker did not join: %s", why,
                extra={"action": "worker_start_failed", "cluster": record.cluster_id, "again_in_s": round(delay_s, 1)},
            )  # fmt: skip
            self._touch_later(entry, delay_s)

    async def _note_scheduler(self, entry: Entry) -> None:
        """Record that its scheduler has come up, or is lost."""
        record = entry.record
        why = entry.ended.get(record.epoch)
        if record.state in {ClusterState.STARTING, ClusterState.RUNNING} and why is not None:
            log.warning(
                "scheduler lost: %s", why,
                extra={"action": "scheduler_lost", "cluster": record.cluster_id, "epoch": record.epoch},
            )  # fmt: skip
            if not await self._change(entry, ClusterEvent.SCHEDULER_LOST, reason=why):
                return
            now = entry.since = self._clock.monotonic()
            entry.opened = entry.status = None
            entry.lost_at.append(now)
            lately = sum(at > now - LOSSES_WITHIN_S for at in entry.lost_at)
            if record.kind is ClusterKind.JOB:
                entry.close_reason = f"its scheduler was lost: {why}"
                self._lost(entry, why)
            elif entry.record.kind is ClusterKind.SPARE:  # as the ledger has it now: it may have been handed out meanwhile
                entry.close_reason = f"its scheduler was lost: {why}"
            elif lately > MOST_LOSSES:
                entry.fail_reason = (
                    f"its scheduler was lost {lately} times within {LOSSES_WITHIN_S:.0f} s, the last time because: {why}"
                )
        opened = entry.opened
        epoch = entry.record.epoch
        if opened is None or entry.record.state is not ClusterState.STARTING or opened.epoch != epoch:
            return
        entry.opened = None
        said = {"address": opened.address, "dashboard": opened.dashboard, "ca": opened.ca}
        if await self._change(entry, ClusterEvent.OPENED, **said):
            entry.ended = {ended: text for ended, text in entry.ended.items() if ended >= epoch}
            self._opened(entry)

    # ------------------------------------------------------------------ what is wanted

    async def _follow_wishes(self, entry: Entry) -> None:
        """Record that it is to close, or cannot be had."""
        record = entry.record
        if entry.close_reason is not None and record.state in {
            ClusterState.PENDING, ClusterState.STARTING, ClusterState.RUNNING,
        }:
            await self._change(entry, ClusterEvent.CLOSE, reason=entry.close_reason)
        elif entry.fail_reason is not None and record.state in {ClusterState.PENDING, ClusterState.STARTING}:
            self._send(record.agent, close_frame(record))
            await self._change(entry, ClusterEvent.FAIL, reason=entry.fail_reason)
        if not entry.is_wanted:
            entry.open_on = None
            for held in list(entry.held.values()):
                if not held.recorded:
                    self._book.release(entry, held)

    async def _record_plan(self, entry: Entry) -> None:
        """Make durable what was decided for it: who opens its scheduler, and which slots it gets."""
        record = entry.record
        for held in list(entry.held.values()):
            if not held.recorded and held.left is not None:  # its agent was lost meanwhile
                self._book.release(entry, held)
        planned = [held for held in entry.held.values() if not held.recorded]
        opens = entry.open_on is not None and record.state is ClusterState.PENDING
        if not planned and not opens:
            return
        writes: list[Coroutine[Any, Any, Any]] = []
        if opens:
            change = ClusterChange(
                cluster_id=record.cluster_id, epoch=record.epoch, event=ClusterEvent.OPEN, agent=entry.open_on
            )
            writes.append(self._ledger.change_cluster(change))
        if planned:
            writes.append(self._ledger.grant_slots([held.lease for held in planned]))
        # At once, in this order: one transaction for both, and where the first is refused, so is the second.
        done: list[Any] = await asyncio.gather(*writes, return_exceptions=True)
        for answer in done:
            if isinstance(answer, LedgerUnavailable):
                self._drop_plan(entry, planned)
            if isinstance(answer, BaseException):
                raise answer
        if opens:
            entry.open_on = None
            entry.starting_since = self._clock.monotonic()
            if await self._took(entry, done[0]) and self._agents.get(entry.record.agent or "") is None:
                entry.ended[entry.record.epoch] = "its agent was lost while the scheduler was asked for"
                entry.is_dirty = True
        granted: list[SlotLease] = done[-1] if planned else []
        if planned and not granted:
            self._drop_plan(entry, planned)
        for held, lease in zip(planned, granted, strict=False):
            held.lease, held.recorded = lease, True
            if self._agents.get(lease.agent) is None:
                held.left = "its agent was lost while the slots were granted"
                entry.is_dirty = True

    def _drop_plan(self, entry: Entry, planned: list[Held]) -> None:
        entry.open_on = None
        for held in planned:
            self._book.release(entry, held)

    async def _let_go(self, entry: Entry) -> None:
        """Let workers leave that are too many, belong to a scheduler that is gone, or to a cluster that ends."""
        epoch = entry.record.epoch
        leaving = []
        for held in entry.held.values():
            if held.recorded and held.lease.state in {SlotLeaseState.GRANTED, SlotLeaseState.JOINED}:
                old = held.lease.epoch != epoch or entry.record.state is ClusterState.PENDING
                if old or held.retired or not entry.is_wanted:
                    why = "its scheduler is gone" if old else entry.close_reason or entry.fail_reason or "scaled down"
                    leaving.append((held, SlotLeaseEvent.LEAVE, why))
        await self._change_slots(entry, leaving)
        if entry.is_wanted:
            await self._shrink(entry, len(entry.live) - entry.record.spec.n_workers)

    async def _shrink(self, entry: Entry, excess: int) -> None:
        if excess <= 0:
            entry.leave_first.clear()
            entry.keep_kept()
            return
        # Those that were named, those that have nothing yet, then the youngest.
        order = sorted(entry.live, key=lambda held: _leaves_after(entry, held))
        leaving = []
        for held in order[:excess]:
            if not held.recorded:
                self._book.release(entry, held)
            elif not held.joined or entry.record.state is not ClusterState.RUNNING:
                leaving.append((held, SlotLeaseEvent.LEAVE, "scaled down"))
            else:
                held.retires = True
        await self._change_slots(entry, leaving)

    # ------------------------------------------------------------------ what agents are told

    def _tell(self, entry: Entry) -> None:
        """Tell agents what is recorded and they may not know yet, again if they do not answer."""
        record, now = entry.record, self._clock.monotonic()
        if record.state in {ClusterState.STARTING, ClusterState.CLOSING} and _is_due(entry.asked_at, now):
            closes = record.state is ClusterState.CLOSING
            if record.agent is not None and record.epoch not in entry.ended:
                entry.asked_at = now
                self._send(record.agent, close_frame(record) if closes else open_frame(record))
        self._tell_retiring(entry, now)
        for held in entry.held.values():
            lease = held.lease
            if not held.recorded or held.left is not None:
                continue
            if lease.state is SlotLeaseState.GRANTED and lease.epoch == record.epoch and _is_due(held.sent_at, now):
                frame = grant_frame(record, lease)
                if frame is not None and self._send(lease.agent, frame):
                    held.sent_at = now
            elif lease.state is SlotLeaseState.LEAVING and _is_due(held.taken_at, now):
                held.taken_at = now
                # Nobody has used a spare: its processes need not be asked, and somebody waits for their slots.
                unused = record.kind is ClusterKind.SPARE
                self._send(lease.agent, TakeSlots(lease.lease_id, grace_s=0.0) if unused else TakeSlots(lease.lease_id))

    def _tell_retiring(self, entry: Entry, now: float) -> None:
        """Ask the scheduler to move the data of workers that are to leave, until it has: no deadline takes it from them."""
        record = entry.record
        if record.state is not ClusterState.RUNNING or not entry.is_wanted:
            return
        due = [
            held for held in entry.retiring
            if not held.retired
            and _is_due(held.retire_asked_at, now, KEPT_REPEAT_S if held.kept else REPEAT_S)
        ]  # fmt: skip
        names = [held.lease.worker for held in due]
        if due and self._send(record.agent, RetireWorkers(record.cluster_id, record.epoch, names)):
            for held in due:
                held.retire_asked_at = now

    def _send(self, agent: str | None, frame: Any) -> bool:
        handle = None if agent is None else self._agents.get(agent)
        return handle is not None and handle.send(frame)

    async def _finish(self, entry: Entry) -> None:
        """Record the end once nothing of the cluster is left."""
        record = entry.record
        is_over = record.agent is None or record.epoch in entry.ended
        if record.state is ClusterState.CLOSING and is_over and not entry.held:
            await self._close(entry)
        if entry.record.state.is_terminal and not entry.held:
            self._book.remove(entry)

    async def _close(self, entry: Entry) -> None:
        if not await self._change(entry, ClusterEvent.CLOSED):
            for lease in await self._ledger.slot_leases(cluster_id=entry.record.cluster_id):
                if lease.lease_id not in entry.held:  # recorded, and its answer was lost on the way to the book
                    self._book.hold(entry, Held(lease, recorded=True, since=self._clock.monotonic()))

    # ------------------------------------------------------------------ the ledger

    async def _change(self, entry: Entry, event: ClusterEvent, **said: Any) -> bool:
        record = entry.record
        change = ClusterChange(cluster_id=record.cluster_id, epoch=record.epoch, event=event, **said)
        return await self._took(entry, await self._ledger.change_cluster(change))

    async def _took(self, entry: Entry, record: ClusterRecord | None) -> bool:
        """Take the new record into the book; if the ledger refused, what it has instead."""
        took = record is not None
        if record is None:
            record = await self._ledger.get_cluster(entry.record.cluster_id)
            log.warning(
                "cluster fenced", extra={"action": "stale_epoch", "cluster": entry.record.cluster_id, "now": str(record)}
            )
            assert record is not None, "a cluster is purged only after it has left the book"
        if record.state is not entry.record.state:
            entry.asked_at = None
        entry.take(record)
        wake(entry)
        return took

    async def _change_slots(self, entry: Entry, changes: Sequence[tuple[Held, SlotLeaseEvent, str]]) -> None:
        """Record what happens to leases: all in one transaction, each guarded for itself."""
        if not changes:
            return
        done = await asyncio.gather(
            *(self._ledger.change_slots(held.lease.lease_id, event, reason=reason) for held, event, reason in changes),
            return_exceptions=True,
        )
        refused = False
        for (held, _, _), lease in zip(changes, done, strict=True):
            if isinstance(lease, SlotLease):
                self._is_now(entry, held, lease)
            refused = refused or lease is None
        for answer in done:
            if isinstance(answer, BaseException):
                raise answer
        if refused:  # what the book says is stale
            known = {lease.lease_id: lease for lease in await self._ledger.slot_leases(cluster_id=entry.record.cluster_id)}
            for held, event, _ in changes:
                lease_id = held.lease.lease_id
                log.warning("slot lease fenced", extra={"action": "stale_lease", "lease": lease_id, "event": str(event)})
                self._is_now(entry, held, known.get(lease_id))

    def _is_now(self, entry: Entry, held: Held, lease: SlotLease | None) -> None:
        if lease is not None:
            held.lease = lease
        if lease is None or not lease.state.holds_slots:
            self._book.release(entry, held)


def _leaves_after(entry: Entry, held: Held) -> tuple[bool, bool, bool, int]:
    lease = held.lease
    return lease.worker not in entry.leave_first, held.recorded, held.joined, -int(lease.worker)


def _is_due(at: float | None, now: float, after_s: float = REPEAT_S) -> bool:
    return at is None or now - at >= after_s
