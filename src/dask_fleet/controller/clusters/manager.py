"""The clusters' face to the server: create, wait, sign, scale, close, find."""

from __future__ import annotations

from collections.abc import Sequence

from dask_fleet.controller.agents import AgentHandle
from dask_fleet.controller.clusters.view import ClusterView
from dask_fleet.model.clusters import ClusterEventRecord, ClusterRecord, NewCluster
from dask_fleet.protocol.cluster_frames import NeedCluster


class Clusters:
    """Every living cluster, and the slots lent to it."""

    async def create(self, new: NewCluster, csr: bytes | None = None) -> ClusterRecord:
        """Record a cluster and begin to bring it up; durable when this returns (``pending`` or ``starting``).

        Parameters
        ----------
        csr
            Certificate request (PEM) of the first client: it is signed as soon as the scheduler is there, so that `sign`
            with the same request answers at once.

        Raises
        ------
        Conflict
            If a living cluster of the tenant has the name.
        QuotaExceeded
            If the user has as many clusters, or asks for as many workers, as the server allows.
        ClusterImpossible
            If no agent that there is could ever give what is asked.
        Draining, LedgerUnavailable
            Nothing was made.
        """
        raise NotImplementedError

    async def wait(self, cluster_id: str, timeout_s: float) -> ClusterRecord:
        """Return the cluster once it runs or has ended, or as it is after `timeout_s`.

        Raises
        ------
        NotFound
            If there is none.
        """
        raise NotImplementedError

    async def sign(self, cluster_id: str, csr: bytes, *, role: str = "client") -> tuple[bytes, bytes]:
        """Return a certificate for the request and the cluster's authority (PEM both), from the agent of its scheduler.

        Raises
        ------
        NotFound
            If there is no such cluster.
        Conflict
            If it does not run (``cluster_state`` says how it stands).
        BadRequest
            If the agent refuses the request.
        AgentUnreachable
            If the agent of its scheduler does not answer.
        """
        raise NotImplementedError

    async def scale(self, cluster_id: str, n_workers: int) -> ClusterRecord:
        """Change how many workers the cluster is to have; workers come and go afterwards.

        Raises
        ------
        NotFound, Conflict, QuotaExceeded
            There is none; it is closing or has ended; the user may not have so many.
        """
        raise NotImplementedError

    async def close(self, cluster_id: str, reason: str) -> ClusterRecord:
        """Begin to close a cluster; one that is closing or has ended stays as it is. `wait_closed` waits for the end.

        Raises
        ------
        NotFound
            If there is none.
        """
        raise NotImplementedError

    async def wait_closed(self, cluster_id: str, timeout_s: float) -> ClusterRecord:
        """Return the cluster once it has ended, or as it is after `timeout_s`."""
        raise NotImplementedError

    async def find(self, tenant: str, name_or_id: str) -> ClusterRecord:
        """Return the living cluster of the tenant with that name, or the one with that id, living or ended.

        Raises
        ------
        NotFound
            If there is none: the same for one that never was, and for another tenant's.
        """
        raise NotImplementedError

    async def list(self, tenant: str, *, living: bool = True, limit: int = 1000) -> Sequence[ClusterRecord]:
        """Return the tenant's clusters, newest first: living ones, or also those that ended."""
        raise NotImplementedError

    async def events(self, record: ClusterRecord) -> Sequence[ClusterEventRecord]:
        """Return the story of a cluster, oldest first."""
        raise NotImplementedError

    def status(self, record: ClusterRecord) -> ClusterView:
        """Say how a cluster is just now."""
        raise NotImplementedError

    async def need(self, handle: AgentHandle, frame: NeedCluster) -> None:
        """Give an attempt a cluster of its own; answered by a `JobCluster` to its agent, also where there will be none."""
        raise NotImplementedError
