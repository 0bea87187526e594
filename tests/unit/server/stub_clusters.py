"""The controller's clusters, as far as routes see them: they start when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from dask_fleet.controller.clusters.manager import Clusters
from dask_fleet.controller.clusters.view import ClusterView
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.clusters import ClusterEventRecord, ClusterRecord, NewCluster
from dask_fleet.model.errors import BadRequest, Conflict, NotFound


class StubClusters(Clusters):
    """Records in a dict."""

    def __init__(self, *, runs_at_once: bool = True) -> None:
        self.runs_at_once = runs_at_once
        self.records: dict[str, ClusterRecord] = {}
        self.signed: list[bytes] = []
        self.left: tuple[str, ...] = ()
        self.waiting_for: str | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Nothing was there before."""

    def change(self, cluster_id: str, **fields: object) -> ClusterRecord:
        record = self.records[cluster_id] = msgspec.structs.replace(self.records[cluster_id], **fields)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return record

    def run(self, cluster_id: str) -> ClusterRecord:
        return self.change(
            cluster_id,
            state=ClusterState.RUNNING,
            epoch=1,
            address="tls://127.0.0.1:4711",
            dashboard="http://127.0.0.1:4712/status",
            ca=b"CA",
            agent="local-a",
        )

    async def create(self, new: NewCluster, csr: bytes | None = None, *, waits_s: float = 0.0) -> ClusterRecord:
        if any(
            (each.tenant, each.name) == (new.tenant, new.name) and not each.state.is_terminal
            for each in self.records.values()
        ):
            raise Conflict(f"a cluster {new.name!r} runs already")
        self.records[new.cluster_id] = ClusterRecord(
            cluster_id=new.cluster_id,
            name=new.name,
            tenant=new.tenant,
            user=new.user,
            kind=new.kind,
            spec=new.spec,
            state=ClusterState.PENDING,
            created_us=1,
        )
        return self.run(new.cluster_id) if self.runs_at_once else self.records[new.cluster_id]

    async def wait(self, cluster_id: str, timeout_s: float, *, workers: bool = False) -> ClusterRecord:
        try:
            async with asyncio.timeout(timeout_s):
                while self.records[cluster_id].state in {ClusterState.PENDING, ClusterState.STARTING}:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.records[cluster_id]

    async def sign(self, cluster_id: str, csr: bytes, *, role: str = "client") -> tuple[bytes, bytes]:
        record = self.records[cluster_id]
        if record.state is not ClusterState.RUNNING:
            raise Conflict("it does not run", cluster_state=record.state.value)
        if b"bad" in csr:
            raise BadRequest("the agent refuses the request")
        self.signed.append(csr)
        return b"CERTIFICATE", record.ca

    async def scale(self, cluster_id: str, n_workers: int, *, leave: Sequence[str] = ()) -> ClusterRecord:
        record = self.records[cluster_id]
        self.left = tuple(leave)
        return self.change(cluster_id, spec=msgspec.structs.replace(record.spec, n_workers=n_workers))

    async def close(self, cluster_id: str, reason: str) -> ClusterRecord:
        return self.change(cluster_id, state=ClusterState.CLOSED, reason=reason, closed_us=2)

    async def wait_closed(self, cluster_id: str, timeout_s: float) -> ClusterRecord:
        return self.records[cluster_id]

    async def find(self, tenant: str, name_or_id: str) -> ClusterRecord:
        for record in self.records.values():
            if record.tenant == tenant and (
                record.cluster_id == name_or_id or (record.name == name_or_id and not record.state.is_terminal)
            ):
                return record
        raise NotFound("no such cluster")

    async def list(
        self, tenant: str, *, living: bool = True, spares: bool = False, limit: int = 1000
    ) -> Sequence[ClusterRecord]:
        return [
            record
            for record in self.records.values()
            if record.tenant == tenant and not (living and record.state.is_terminal)
        ]

    async def events(self, record: ClusterRecord) -> Sequence[ClusterEventRecord]:
        return []

    def status(self, record: ClusterRecord) -> ClusterView:
        return ClusterView(workers=0, wanted=record.spec.n_workers, waiting_for=self.waiting_for)
