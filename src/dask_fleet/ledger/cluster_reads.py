"""Reads of clusters and slot leases from SQLite, to be called in the reader's thread."""

from __future__ import annotations

from typing import Any

from dask_fleet.ledger import cluster_rows, statements
from dask_fleet.model.clusters import ClusterEventRecord, ClusterRecord, SlotLease
from dask_fleet.plugins.ledger import MAX_CLUSTER_EVENTS

_SQL = statements.load("clusters")


class ClusterReads:
    """See `dask_fleet.ledger.reader.Reads`."""

    _execute: Any

    def cluster(self, cluster_id: str) -> ClusterRecord | None:
        """See `Ledger.get_cluster`."""
        for statement in ("cluster", "cluster_of_request"):
            row = self._execute(_SQL[statement], (cluster_id,)).fetchone()
            if row is not None:
                return cluster_rows.cluster_from_row(row)
        return None

    def clusters(self, tenant: str | None, limit: int, *, living: bool, spares: bool) -> list[ClusterRecord]:
        """See `Ledger.clusters`."""
        name = "living_clusters" if living else "all_clusters" if tenant is None else "clusters_of_tenant"
        return [cluster_rows.cluster_from_row(row) for row in self._execute(_SQL[name], (tenant, limit, spares))]

    def cluster_events(self, cluster_id: str) -> list[ClusterEventRecord]:
        """See `Ledger.cluster_events`."""
        found = self._execute(_SQL["cluster_events"], (cluster_id, MAX_CLUSTER_EVENTS))
        return [cluster_rows.event_from_row(row) for row in found]

    def slot_leases(self, cluster_id: str | None, *, ended: bool) -> list[SlotLease]:
        """See `Ledger.slot_leases`."""
        if cluster_id is None:
            found = self._execute(_SQL["slots" if ended else "held_slots"])
        else:
            found = self._execute(_SQL["slots_of_cluster" if ended else "held_slots_of_cluster"], (cluster_id,))
        return [cluster_rows.slots_from_row(row) for row in found]
