"""Clusters, slot leases and their events to rows and back; the one place that knows the columns' order."""

from __future__ import annotations

import msgspec

from dask_fleet.ledger.rows import Row, to_json
from dask_fleet.model.cluster_states import ClusterEventKind, ClusterState, SlotLeaseState
from dask_fleet.model.clusters import ClusterEventRecord, ClusterKind, ClusterRecord, ClusterSpec, SlotLease

_spec_of = msgspec.json.Decoder(ClusterSpec).decode
_data_of = msgspec.json.Decoder(dict[str, object]).decode


def row_of_cluster(record: ClusterRecord) -> Row:
    """Return the bindings of ``insert_cluster``."""
    return (
        record.cluster_id, record.name, record.tenant, record.user, record.kind, to_json(record.spec), record.state,
        record.epoch, record.agent, record.address, record.dashboard, record.ca, record.seq, record.attempt,
        record.created_us, record.running_us, record.closed_us, record.reason,
    )


def row_of_change(before: ClusterRecord, after: ClusterRecord) -> Row:
    """Return the bindings of ``update_cluster``: all that can change, then the guard."""
    return (
        after.name, after.user, after.kind, to_json(after.spec), after.state, after.epoch, after.agent, after.address,
        after.dashboard, after.ca, after.created_us, after.running_us, after.closed_us, after.reason,
        before.cluster_id, before.state, before.epoch,
    )


def cluster_from_row(row: Row) -> ClusterRecord:
    """Return the record of a row of ``cluster``."""
    return ClusterRecord(
        cluster_id=row[0], name=row[1], tenant=row[2], user=row[3], kind=ClusterKind(row[4]), spec=_spec_of(row[5]),
        state=ClusterState(row[6]), epoch=row[7], agent=row[8], address=row[9], dashboard=row[10], ca=bytes(row[11]),
        seq=row[12], attempt=row[13], created_us=row[14], running_us=row[15], closed_us=row[16], reason=row[17],
    )


def row_of_slots(lease: SlotLease) -> Row:
    """Return the bindings of ``put_slot_lease``."""
    return (
        lease.lease_id, lease.cluster_id, lease.epoch, lease.agent, lease.worker, lease.threads, int(lease.fresh),
        lease.state, lease.granted_us, lease.reason,
    )


def slots_from_row(row: Row) -> SlotLease:
    """Return the record of a row of ``slot_lease``."""
    return SlotLease(
        lease_id=row[0], cluster_id=row[1], epoch=row[2], agent=row[3], worker=row[4], threads=row[5], fresh=row[6] == 1,
        state=SlotLeaseState(row[7]), granted_us=row[8], reason=row[9],
    )


def event_from_row(row: Row) -> ClusterEventRecord:
    """Return the record of a row of ``cluster_events``."""
    return ClusterEventRecord(
        event_id=row[0], epoch=row[1], kind=ClusterEventKind(row[2]), at_us=row[3],
        data=_data_of(row[4]) if row[4] else {},
    )
