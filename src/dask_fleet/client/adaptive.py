"""Dask's adaptive scaling, of a `FleetCluster`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distributed.deploy.adaptive import Adaptive


class FleetAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling; the server has workers retired, with their data moved, before it takes them back."""

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Return what to change; nothing while the cluster does not see its workers: it would take them for missing."""
        if not self.cluster.followed:
            return {"status": "same"}
        return dict(await super().recommendations(target))

    async def scale_down(self, workers: Iterable[Any]) -> None:
        """Give these workers back: the scheduler has found that they have nothing to do."""
        if workers:
            await self.cluster.scale_down(workers)
