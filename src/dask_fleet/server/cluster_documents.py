"""The cluster document: what the API says of a cluster."""

from __future__ import annotations

from typing import Any

from dask_fleet.controller.clusters.view import ClusterView
from dask_fleet.model.clusters import ClusterEventRecord, ClusterRecord
from dask_fleet.server.documents import rfc3339


def cluster_document(record: ClusterRecord, view: ClusterView | None) -> dict[str, Any]:
    """Return what the API says of a cluster; `view` is how a living one is just now."""
    spec = record.spec
    link = f"/v1/clusters/{record.cluster_id}"
    return {
        "cluster_id": record.cluster_id,
        "name": record.name,
        "status": record.state.value,
        "kind": record.kind.value,
        "user": record.user,
        "epoch": record.epoch,
        "address": record.address or None,
        "dashboard": record.dashboard or None,
        "ca": record.ca.decode("ascii", "replace") or None,
        "agent": record.agent,
        "n_workers": spec.n_workers,
        "workers": view.workers if view is not None else 0,
        "joining": view.joining if view is not None else 0,
        "waiting_for": view.waiting_for if view is not None else None,
        "tasks": view.tasks if view is not None else 0,
        "clients": view.clients if view is not None else 0,
        "idle_s": round(view.idle_s, 1) if view is not None else 0.0,
        "threads_per_worker": spec.threads_per_worker,
        "resources": spec.resources,
        "memory_limit": spec.memory_limit_bytes,
        "scheduler_memory_limit": spec.scheduler_memory_limit_bytes,
        "pool": spec.pool,
        "idle_timeout_s": spec.idle_timeout_s,
        "max_lifetime_s": spec.max_lifetime_s,
        "access": spec.access.value,
        "shared": spec.shared,
        "shutdown_on_close": spec.shutdown_on_close,
        "created_at": rfc3339(record.created_us),
        "running_at": rfc3339(record.running_us),
        "closed_at": rfc3339(record.closed_us),
        "reason": record.reason or None,
        "links": {"self": link, "events": f"{link}/events", "certificate": f"{link}/certificate"},
    }


def cluster_event_document(event: ClusterEventRecord) -> dict[str, Any]:
    """Return what the API says of something that happened to a cluster."""
    return {
        "event_id": event.event_id,
        "epoch": event.epoch,
        "kind": str(event.kind),
        "at": rfc3339(event.at_us),
        "data": event.data,
    }
