"""Clusters and slot leases in SQLite, each call inside a transaction of the writer."""

from __future__ import annotations

from typing import Any

from dask_fleet.ledger import cluster_changes, cluster_rows, rows, statements
from dask_fleet.ledger.cluster_changes import ClusterDraft
from dask_fleet.ledger.writes import Writes
from dask_fleet.model.cluster_states import ClusterEvent, SlotLeaseEvent
from dask_fleet.model.clusters import ClusterChange, ClusterRecord, ClusterSpec, NewCluster, SlotLease
from dask_fleet.model.errors import Conflict, InternalError

_SQL = statements.load("clusters")


def name_in_use(name: str) -> Conflict:
    """Return what is raised where a living cluster has the name."""
    return Conflict(f"a cluster named {name!r} is there already: take another name, or close that one first", name=name)


def id_in_use(cluster_id: str) -> Conflict:
    """Return what is raised where a cluster, living or ended, has the id, or was handed out to a request for it."""
    return Conflict(f"the cluster {cluster_id} was made before", cluster_id=cluster_id)


class Clusters:
    """Reads, decides (`cluster_changes`), writes."""

    def __init__(self, connection: Any, writes: Writes) -> None:
        self._execute = connection.execute
        self._changes = connection.changes
        self._writes = writes

    def create(self, new: NewCluster) -> ClusterRecord:
        """See `Ledger.create_cluster`."""
        self._check_name(new.tenant, new.name)
        self._check_id(new.cluster_id)
        record, draft = cluster_changes.created(new, now_us=self._writes.now_us)
        self._execute(_SQL["insert_cluster"], cluster_rows.row_of_cluster(record))
        self._tell(record.cluster_id, draft)
        return record

    def change(self, change: ClusterChange) -> ClusterRecord | None:
        """See `Ledger.change_cluster`."""
        before = self._cluster(change.cluster_id)
        holds_slots = change.event is ClusterEvent.CLOSED and self._holds_slots(change.cluster_id)
        after = cluster_changes.changed(before, change, holds_slots=holds_slots, now_us=self._writes.now_us)
        if before is None or after is None:
            return None
        return self._write(before, *after)

    def scale(self, cluster_id: str, n_workers: int) -> ClusterRecord | None:
        """See `Ledger.scale_cluster`."""
        before = self._cluster(cluster_id)
        after = cluster_changes.scaled(before, n_workers)
        if before is None or after is None:
            return None
        return self._write(before, *after)

    def adopt(self, cluster_id: str, name: str, user: str, spec: ClusterSpec) -> ClusterRecord | None:
        """See `Ledger.adopt_spare`."""
        before = self._cluster(cluster_id)
        after = cluster_changes.adopted(before, name=name, user=user, spec=spec, now_us=self._writes.now_us)
        if before is None or after is None:
            return None
        if spec.requested_as:
            self._check_id(spec.requested_as)
        if name != before.name:
            self._check_name(before.tenant, name)
        return self._write(before, *after)

    def grant(self, leases: tuple[SlotLease, ...]) -> list[SlotLease]:
        """See `Ledger.grant_slots`."""
        clusters = {lease.cluster_id: self._cluster(lease.cluster_id) for lease in leases}
        made = [
            cluster_changes.granted(clusters[lease.cluster_id], lease, now_us=self._writes.now_us) for lease in leases
        ]
        taken = [each for each in made if each is not None]
        if len(taken) < len(made) or self._is_known(leases):
            return []
        for lease, draft in taken:
            self._execute(_SQL["put_slot_lease"], cluster_rows.row_of_slots(lease))
            self._tell(lease.cluster_id, draft)
        return [lease for lease, _ in taken]

    def change_slots(self, lease_id: str, event: SlotLeaseEvent, reason: str) -> SlotLease | None:
        """See `Ledger.change_slots`."""
        row = self._execute(_SQL["slot_lease"], (lease_id,)).fetchone()
        before = None if row is None else cluster_rows.slots_from_row(row)
        changed = cluster_changes.slots_changed(before, event, reason=reason)
        if before is None or changed is None:
            return None
        after, draft = changed
        self._execute(_SQL["update_slot_lease"], (after.state, after.reason, lease_id, before.state))
        self._written(lease_id)
        self._tell(after.cluster_id, draft)
        return after

    def purge(self, ended_before_us: int, limit: int) -> int:
        """See `Ledger.purge_clusters`."""
        found = self._execute(_SQL["purgeable_clusters"], (ended_before_us, limit)).fetchall()
        for (cluster_id,) in found:
            for statement in ("purge_events", "purge_slots", "purge_cluster"):
                self._execute(_SQL[statement], (cluster_id,))
        return len(found)

    # ------------------------------------------------------------------ inside

    def _check_name(self, tenant: str, name: str) -> None:
        if self._execute(_SQL["cluster_of_name"], (tenant, name)).fetchone() is not None:
            raise name_in_use(name)

    def _check_id(self, cluster_id: str) -> None:
        """Refuse what a request made before: a cluster of that id, or a spare that it got instead."""
        for statement in ("cluster", "cluster_of_request"):
            if self._execute(_SQL[statement], (cluster_id,)).fetchone() is not None:
                raise id_in_use(cluster_id)

    def _is_known(self, leases: tuple[SlotLease, ...]) -> bool:
        named = {(lease.cluster_id, lease.worker) for lease in leases}
        if len({lease.lease_id for lease in leases}) < len(leases) or len(named) < len(leases):
            return True
        return any(
            self._execute(_SQL["known_slots"], (lease.lease_id, lease.cluster_id, lease.worker)).fetchone() is not None
            for lease in leases
        )

    def _cluster(self, cluster_id: str) -> ClusterRecord | None:
        row = self._execute(_SQL["cluster"], (cluster_id,)).fetchone()
        return None if row is None else cluster_rows.cluster_from_row(row)

    def _holds_slots(self, cluster_id: str) -> bool:
        return bool(self._execute(_SQL["holds_slots"], (cluster_id,)).fetchone()[0])

    def _write(self, before: ClusterRecord, after: ClusterRecord, draft: ClusterDraft | None) -> ClusterRecord:
        if draft is not None:
            self._execute(_SQL["update_cluster"], cluster_rows.row_of_change(before, after))
            self._written(before.cluster_id)
            self._tell(after.cluster_id, draft)
        return after

    def _written(self, what: str) -> None:
        if self._changes() != 1:
            raise InternalError(f"the guard of {what} refused what was read in the same transaction")

    def _tell(self, cluster_id: str, draft: ClusterDraft) -> None:
        event_id = self._writes.next_event_id()
        self._execute(
            _SQL["insert_cluster_event"],
            (cluster_id, event_id, draft.epoch, draft.kind, self._writes.now_us, rows.event_text(draft.data)),
        )
