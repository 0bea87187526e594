"""What each write of a cluster or a slot lease means: pure functions from a record to its next one, shared by all ledgers.

A ledger reads the record, asks here, and writes what it is told, with its event, in one transaction.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from dask_fleet.model.cluster_states import (
    CLUSTER_TRANSITIONS,
    SLOT_LEASE_TRANSITIONS,
    ClusterEvent,
    ClusterEventKind,
    ClusterState,
    SlotLeaseEvent,
    SlotLeaseState,
)
from dask_fleet.model.clusters import ClusterChange, ClusterKind, ClusterRecord, ClusterSpec, NewCluster, SlotLease

_KINDS = {
    ClusterEvent.OPEN: ClusterEventKind.OPENING,
    ClusterEvent.OPENED: ClusterEventKind.OPENED,
    ClusterEvent.SCHEDULER_LOST: ClusterEventKind.SCHEDULER_LOST,
    ClusterEvent.CLOSE: ClusterEventKind.CLOSING,
    ClusterEvent.CLOSED: ClusterEventKind.CLOSED,
    ClusterEvent.FAIL: ClusterEventKind.FAILED,
}

_SLOT_KINDS = {
    SlotLeaseEvent.JOINED: ClusterEventKind.SLOTS_JOINED,
    SlotLeaseEvent.LEAVE: ClusterEventKind.SLOTS_LEAVING,
    SlotLeaseEvent.LEFT: ClusterEventKind.SLOTS_RELEASED,
    SlotLeaseEvent.LAPSE: ClusterEventKind.SLOTS_LAPSED,
}

_ENDS_SCHEDULER = frozenset({ClusterEvent.SCHEDULER_LOST, ClusterEvent.CLOSED, ClusterEvent.FAIL})


class ClusterDraft(NamedTuple):
    """An event to be, without its id."""

    epoch: int
    kind: ClusterEventKind
    data: dict[str, object]


def created(new: NewCluster, *, now_us: int) -> tuple[ClusterRecord, ClusterDraft]:
    """Return the record of a request for a cluster."""
    record = ClusterRecord(
        cluster_id=new.cluster_id, name=new.name, tenant=new.tenant, user=new.user, kind=new.kind, spec=new.spec,
        state=ClusterState.PENDING, seq=new.seq, attempt=new.attempt, created_us=now_us,
    )
    data: dict[str, object] = {"by": new.user, "n_workers": new.spec.n_workers}
    return record, ClusterDraft(0, ClusterEventKind.CREATED, data)


def changed(
    record: ClusterRecord | None, change: ClusterChange, *, holds_slots: bool, now_us: int
) -> tuple[ClusterRecord, ClusterDraft] | None:
    """Return the record after an event, or ``None`` if fence, table or guard refuse it.

    Parameters
    ----------
    holds_slots
        Whether any lease of the cluster holds slots: then it cannot be closed yet.
    """
    event = change.event
    if record is None or record.epoch != change.epoch or (record.state, event) not in CLUSTER_TRANSITIONS:
        return None
    if event is ClusterEvent.CLOSED and holds_slots:
        return None
    after = replace(record, state=CLUSTER_TRANSITIONS.next(record.state, event), reason=change.reason or record.reason)
    data: dict[str, object] = {}
    if change.reason:
        data["reason"] = change.reason
    if event is ClusterEvent.OPEN:
        after = replace(after, epoch=record.epoch + 1, agent=change.agent)
        data["agent"] = change.agent
    elif event is ClusterEvent.OPENED:
        running_us = now_us if record.running_us is None else record.running_us
        # What was said of a scheduler that was lost is over.
        after = replace(after, address=change.address, dashboard=change.dashboard, ca=change.ca, running_us=running_us,
                        reason="")
        data["address"] = change.address
    elif event in _ENDS_SCHEDULER:
        if record.agent is not None:
            data["agent"] = record.agent
        after = replace(after, agent=None, address="", dashboard="", ca=b"")
    if after.state.is_terminal:
        after = replace(after, closed_us=now_us)
    return after, ClusterDraft(after.epoch, _KINDS[event], data)


def scaled(record: ClusterRecord | None, n_workers: int) -> tuple[ClusterRecord, ClusterDraft | None] | None:
    """Return the record with another target, without an event if it is the same; ``None`` if the cluster does not live."""
    if record is None or record.state.is_terminal or record.state is ClusterState.CLOSING:
        return None
    if record.spec.n_workers == n_workers:
        return record, None
    data: dict[str, object] = {"from": record.spec.n_workers, "to": n_workers}
    after = replace(record, spec=replace(record.spec, n_workers=n_workers))
    return after, ClusterDraft(record.epoch, ClusterEventKind.SCALED, data)


def adopted(
    record: ClusterRecord | None, *, name: str, user: str, spec: ClusterSpec, now_us: int
) -> tuple[ClusterRecord, ClusterDraft] | None:
    """Return the spare as a user's cluster, as old as the request for it; ``None`` if it is no running spare."""
    if record is None or record.kind is not ClusterKind.SPARE or record.state is not ClusterState.RUNNING:
        return None
    after = replace(record, kind=ClusterKind.USER, name=name, user=user, spec=spec, created_us=now_us)
    return after, ClusterDraft(record.epoch, ClusterEventKind.ADOPTED, {"by": user, "n_workers": spec.n_workers})


def granted(record: ClusterRecord | None, lease: SlotLease, *, now_us: int) -> tuple[SlotLease, ClusterDraft] | None:
    """Return the lease as it is recorded, or ``None`` if its cluster does not take it."""
    if record is None or record.epoch != lease.epoch:
        return None
    if record.state not in {ClusterState.STARTING, ClusterState.RUNNING}:
        return None
    after = replace(lease, state=SlotLeaseState.GRANTED, granted_us=now_us)
    return after, ClusterDraft(lease.epoch, ClusterEventKind.SLOTS_GRANTED, _of_lease(lease))


def slots_changed(
    lease: SlotLease | None, event: SlotLeaseEvent, *, reason: str
) -> tuple[SlotLease, ClusterDraft] | None:
    """Return the lease after an event, or ``None`` if the table refuses it."""
    if lease is None or (lease.state, event) not in SLOT_LEASE_TRANSITIONS:
        return None
    after = replace(lease, state=SLOT_LEASE_TRANSITIONS.next(lease.state, event), reason=reason or lease.reason)
    data = _of_lease(lease)
    if reason:
        data["reason"] = reason
    return after, ClusterDraft(lease.epoch, _SLOT_KINDS[event], data)


def _of_lease(lease: SlotLease) -> dict[str, object]:
    return {"agent": lease.agent, "worker": lease.worker, "threads": lease.threads}
