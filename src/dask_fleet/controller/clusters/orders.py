"""The frames that tell an agent what a cluster's record and leases mean for it."""

from __future__ import annotations

from dask_fleet.model.clusters import ClusterKind, ClusterRecord, SlotLease
from dask_fleet.protocol.cluster_frames import CloseCluster, GrantSlots, OpenCluster


def open_frame(record: ClusterRecord) -> OpenCluster:
    """Return the frame that opens the present scheduler of a cluster."""
    spec = record.spec
    return OpenCluster(
        cluster=record.cluster_id,
        epoch=record.epoch,
        tenant=record.tenant,
        name=record.name,
        config=spec.config,
        preload=list(spec.scheduler_preload),
        dashboard=spec.dashboard,
        idle_timeout_s=spec.idle_timeout_s,
        memory_limit_bytes=spec.scheduler_memory_limit_bytes,
        for_job=record.kind is ClusterKind.JOB,
    )


def close_frame(record: ClusterRecord) -> CloseCluster:
    """Return the frame that ends it."""
    return CloseCluster(record.cluster_id, record.epoch)


def grant_frame(record: ClusterRecord, lease: SlotLease) -> GrantSlots | None:
    """Return the frame that lets a worker join, or ``None`` while its agent cannot know the scheduler yet."""
    if not record.address and lease.agent != record.agent:
        return None
    spec = record.spec
    return GrantSlots(
        lease=lease.lease_id,
        cluster=lease.cluster_id,
        epoch=lease.epoch,
        tenant=record.tenant,
        worker=lease.worker,
        threads=spec.threads_per_worker,
        slots=lease.threads,
        fresh=lease.fresh,
        # An agent that opens the scheduler itself knows its address, whether or not we know it already.
        address="" if lease.agent == record.agent else record.address,
        ca=b"" if lease.agent == record.agent else record.ca,
        resources=spec.resources,
        config=spec.config,
        preload=list(spec.preload),
        memory_limit_bytes=spec.memory_limit_bytes,
        env=spec.env,
    )
