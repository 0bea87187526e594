"""What a client asks about Dask clusters."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

from dask_fleet.client.cluster_request import request_body
from dask_fleet.client.options import CallOptions, encode_params
from dask_fleet.client.transport import Transport


class AsyncClusters:
    """The part of `AsyncClient` that takes, shows and gives back clusters, as documents."""

    _transport: Transport

    async def create_cluster(
        self, n_workers: int = 1, *, wait: float = 0.0, idempotency_key: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Take a Dask cluster and return its document; to use one at once, take a `FleetCluster` instead.

        Parameters
        ----------
        n_workers
            Dask workers.
        wait
            Seconds (at most 60) the server may hold its answer until it runs.
        idempotency_key
            Makes repeated requests one cluster.
        options
            ``name``, ``threads_per_worker``, ``memory_limit``, ``resources``, ``pool``, ``idle_timeout``, ``max_lifetime``,
            ``config``, ``preload``, ``scheduler_preload``, ``worker_options``, ``dashboard``, ``access`` and ``shared``,
            as of `FleetCluster`.

        Raises
        ------
        Conflict, ClusterImpossible, QuotaExceeded, ClusterFailed
            If it cannot be had.
        """
        sent = CallOptions().changed(wait=wait, idempotency_key=idempotency_key or str(uuid.uuid4()))
        body = request_body(n_workers=n_workers, shutdown_on_close=False, **options)
        return await self._transport.json(
            "POST",
            "/v1/clusters",
            headers={"Content-Type": "application/json", **sent.headers()},
            content=encode_params(body),
            wait_s=sent.wait_s,
        )

    async def list_clusters(self, *, ended: bool = False, spares: bool = False) -> list[dict[str, Any]]:
        """Return the documents of the tenant's clusters, newest first.

        Parameters
        ----------
        ended
            Those that are no more as well.
        spares
            Those that are kept ready for who asks next as well.
        """
        query = {name: "true" for name, given in (("all", ended), ("spares", spares)) if given}
        return list((await self._transport.json("GET", "/v1/clusters", query=query or None))["clusters"])

    async def cluster(self, name: str, *, wait: float = 0.0) -> dict[str, Any]:
        """Return the document of a cluster by name or id; with `wait`, once it runs or after so many seconds.

        Raises
        ------
        NotFound
            If there is none, or it is another tenant's.
        """
        wait_s = CallOptions(wait=wait).wait_s
        query = {"wait": str(wait_s)} if wait_s else None
        return await self._transport.json("GET", _cluster_path(name), query=query, wait_s=wait_s)

    async def cluster_events(self, name: str) -> list[dict[str, Any]]:
        """Return what has happened to a cluster, oldest first."""
        return list((await self._transport.json("GET", f"{_cluster_path(name)}/events"))["events"])

    async def scale_cluster(self, name: str, n_workers: int) -> dict[str, Any]:
        """Change how many workers a cluster is to have, and return its document."""
        return await self._transport.json(
            "PATCH",
            _cluster_path(name),
            headers={"Content-Type": "application/json"},
            content=encode_params({"n_workers": n_workers}),
        )

    async def close_cluster(self, name: str, *, wait: float = 0.0) -> dict[str, Any]:
        """Close a cluster and return its document; with `wait`, once it has ended or after so many seconds."""
        sent = CallOptions(wait=wait)
        return await self._transport.json("DELETE", _cluster_path(name), headers=sent.headers(), wait_s=sent.wait_s)


def _cluster_path(name: str) -> str:
    return f"/v1/clusters/{quote(name, safe='')}"
