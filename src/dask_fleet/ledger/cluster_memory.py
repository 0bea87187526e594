"""Clusters and slot leases in plain dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

from dask_fleet.ledger import cluster_changes
from dask_fleet.ledger.cluster_changes import ClusterDraft
from dask_fleet.ledger.clusters import id_in_use, name_in_use
from dask_fleet.model.cluster_states import SlotLeaseEvent
from dask_fleet.model.clusters import (
    ClusterChange,
    ClusterEventRecord,
    ClusterKind,
    ClusterRecord,
    ClusterSpec,
    NewCluster,
    SlotLease,
)


class MemoryClusters:
    """As `dask_fleet.ledger.clusters.Clusters`, without a file."""

    def __init__(self) -> None:
        self._clusters: dict[str, ClusterRecord] = {}
        self._slots: dict[str, SlotLease] = {}
        self._events: dict[str, list[ClusterEventRecord]] = {}
        self._last_event = 0

    def create(self, new: NewCluster, now_us: int) -> ClusterRecord:
        """See `Ledger.create_cluster`."""
        self._check_name(new.tenant, new.name)
        if self.get(new.cluster_id) is not None:
            raise id_in_use(new.cluster_id)
        record, draft = cluster_changes.created(new, now_us=now_us)
        return self._write(record, draft, now_us)

    def change(self, change: ClusterChange, now_us: int) -> ClusterRecord | None:
        """See `Ledger.change_cluster`."""
        held = any(lease.cluster_id == change.cluster_id for lease in self._slots.values() if lease.state.holds_slots)
        after = cluster_changes.changed(self.get(change.cluster_id), change, holds_slots=held, now_us=now_us)
        return None if after is None else self._write(*after, now_us)

    def scale(self, cluster_id: str, n_workers: int, now_us: int) -> ClusterRecord | None:
        """See `Ledger.scale_cluster`."""
        after = cluster_changes.scaled(self.get(cluster_id), n_workers)
        return None if after is None else self._write(*after, now_us)

    def adopt(self, cluster_id: str, name: str, user: str, spec: ClusterSpec, now_us: int) -> ClusterRecord | None:
        """See `Ledger.adopt_spare`."""
        before = self.get(cluster_id)
        after = cluster_changes.adopted(before, name=name, user=user, spec=spec, now_us=now_us)
        if before is None or after is None:
            return None
        if spec.requested_as and self.get(spec.requested_as) is not None:
            raise id_in_use(spec.requested_as)
        if name != before.name:
            self._check_name(before.tenant, name)
        return self._write(*after, now_us)

    def grant(self, leases: Sequence[SlotLease], now_us: int) -> list[SlotLease]:
        """See `Ledger.grant_slots`."""
        made = [cluster_changes.granted(self.get(lease.cluster_id), lease, now_us=now_us) for lease in leases]
        taken = [each for each in made if each is not None]
        known = {lease.lease_id for lease in self._slots.values()}
        names = {(lease.cluster_id, lease.worker) for lease in self._slots.values()}
        for lease in leases:
            if lease.lease_id in known or (lease.cluster_id, lease.worker) in names:
                return []
            known.add(lease.lease_id)
            names.add((lease.cluster_id, lease.worker))
        if len(taken) < len(made):
            return []
        for lease, draft in taken:
            self._slots[lease.lease_id] = lease
            self._tell(lease.cluster_id, draft, now_us)
        return [lease for lease, _ in taken]

    def change_slots(self, lease_id: str, event: SlotLeaseEvent, reason: str, now_us: int) -> SlotLease | None:
        """See `Ledger.change_slots`."""
        changed = cluster_changes.slots_changed(self._slots.get(lease_id), event, reason=reason)
        if changed is None:
            return None
        lease, draft = changed
        self._slots[lease_id] = lease
        self._tell(lease.cluster_id, draft, now_us)
        return lease

    def purge(self, ended_before_us: int, limit: int) -> int:
        """See `Ledger.purge_clusters`."""
        holding = {lease.cluster_id for lease in self._slots.values() if lease.state.holds_slots}
        old = sorted(
            (record.closed_us, record.cluster_id) for record in self._clusters.values()
            if record.closed_us is not None and record.closed_us < ended_before_us and record.cluster_id not in holding
        )[: max(limit, 0)]
        for _, cluster_id in old:
            del self._clusters[cluster_id]
            self._events.pop(cluster_id, None)
            self._slots = {key: lease for key, lease in self._slots.items() if lease.cluster_id != cluster_id}
        return len(old)

    # ------------------------------------------------------------------ reads

    def get(self, cluster_id: str) -> ClusterRecord | None:
        """See `Ledger.get_cluster`."""
        found = self._clusters.get(cluster_id)
        if found is None and cluster_id:
            found = next((each for each in self._clusters.values() if each.spec.requested_as == cluster_id), None)
        return found

    def clusters(self, tenant: str | None, limit: int, *, living: bool, spares: bool) -> list[ClusterRecord]:
        """See `Ledger.clusters`."""
        found = [
            record for record in self._clusters.values()
            if tenant in {None, record.tenant} and not (living and record.state.is_terminal)
            and (spares or record.kind is not ClusterKind.SPARE)
        ]
        return sorted(found, key=lambda record: (record.created_us, record.cluster_id), reverse=True)[:limit]

    def events(self, cluster_id: str, limit: int) -> list[ClusterEventRecord]:
        """See `Ledger.cluster_events`."""
        return self._events.get(cluster_id, [])[:limit]

    def slots(self, cluster_id: str | None, *, ended: bool) -> list[SlotLease]:
        """See `Ledger.slot_leases`."""
        found = [
            lease for lease in self._slots.values()
            if cluster_id in {None, lease.cluster_id} and (ended or lease.state.holds_slots)
        ]
        return sorted(found, key=lambda lease: (lease.granted_us, lease.lease_id))

    # ------------------------------------------------------------------ inside

    def _check_name(self, tenant: str, name: str) -> None:
        for record in self._clusters.values():
            if record.tenant == tenant and record.name == name and not record.state.is_terminal:
                raise name_in_use(name)

    def _write(self, record: ClusterRecord, draft: ClusterDraft | None, now_us: int) -> ClusterRecord:
        self._clusters[record.cluster_id] = record
        if draft is not None:
            self._tell(record.cluster_id, draft, now_us)
        return record

    def _tell(self, cluster_id: str, draft: ClusterDraft, now_us: int) -> None:
        self._last_event += 1
        event = ClusterEventRecord(
            event_id=self._last_event, epoch=draft.epoch, kind=draft.kind, at_us=now_us, data=draft.data
        )
        self._events.setdefault(cluster_id, []).append(event)
