"""The size of a `FleetCluster`: what is wanted, what is there, and how it changes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable
from typing import Any

from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster

from dask_fleet.client.adaptive import FleetAdaptive
from dask_fleet.client.cluster_request import memory_bytes, whole
from dask_fleet.client.cluster_taking import Taken
from dask_fleet.client.control import in_thread


class SizedCluster(Cluster):  # type: ignore[misc]
    """The part of a `FleetCluster` that changes its size, as Dask and its ``Adaptive`` ask for it."""

    _taken: Taken
    _leaving: set[str]
    """Names of workers that were given back and are still there: they are not to be given back twice."""

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        raise NotImplementedError

    @property
    def _document(self) -> dict[str, Any]:
        return self._taken.document

    def scale(self, n: int | None = None, memory: str | float | None = None, cores: int | None = None) -> Any:
        """Change the number of workers; those that leave have their data moved first.

        Parameters
        ----------
        n
            Workers.
        memory, cores
            Or as many workers as have so much together.

        Raises
        ------
        ValueError
            If it is no whole number of at least 0, or the workers' memory is not known.
        QuotaExceeded, ClusterImpossible
            If there can never be so many.
        """
        wanted = 0 if n is None else whole("n", n, 0)
        if memory is not None:
            wanted = max(wanted, math.ceil((memory_bytes(memory) or 0) / self._memory_per_worker()))
        if cores is not None:
            wanted = max(wanted, math.ceil(cores / self._document["threads_per_worker"]))
        if self.asynchronous:
            return self._spawn(self._scale(wanted), "scale")
        return self.sync(self._scale, wanted)

    def adapt(
        self,
        Adaptive: type[Adaptive] = FleetAdaptive,  # noqa: N803 - as Dask calls it
        minimum: int = 0,
        maximum: float = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        **options: Any,
    ) -> Any:
        """Let the number of workers follow the load; see ``distributed.Adaptive``."""
        threads = self._document["threads_per_worker"]
        if minimum_cores is not None:
            minimum = max(minimum, math.ceil(minimum_cores / threads))
        if maximum_cores is not None:
            maximum = min(maximum, maximum_cores // threads)
        return super().adapt(Adaptive=Adaptive, minimum=minimum, maximum=maximum, **options)

    async def scale_down(self, workers: Iterable[Any]) -> None:
        """Give these workers back, by name; of those that are still to come (see `plan`), any."""
        names = set(map(str, workers)) - self._leaving
        there = names & self.observed
        self._leaving |= there
        try:
            await self._scale(max(0, self.n_workers - len(names)), there)
        except BaseException:
            self._leaving -= there
            raise

    async def scale_up(self, n: int) -> None:
        """Have `n` workers."""
        await self._scale(n)

    @property
    def n_workers(self) -> int:
        """How many workers are wanted."""
        return int(self._document.get("n_workers", self._taken.body["n_workers"]))

    @property
    def plan(self) -> set[str]:
        """Names of the workers that are to be there; of those that are still to come, stand-ins."""
        observed = self.observed
        self._leaving &= observed
        there = sorted(observed - self._leaving)
        wanted = self.n_workers
        return {*there[:wanted], *(f"to come {number}" for number in range(len(there), wanted))}

    @property
    def requested(self) -> set[str]:
        """What the server has been asked for: the plan, always."""
        return self.plan

    @property
    def observed(self) -> set[str]:
        """Names of the workers that have joined."""
        return {str(worker["name"]) for worker in self.scheduler_info["workers"].values()}

    @property
    def worker_spec(self) -> dict[str, dict[str, Any]]:
        """Options of each worker of the plan, as ``distributed.SpecCluster`` has them."""
        options = {
            "nthreads": self._document.get("threads_per_worker"),
            "memory_limit": self._document.get("memory_limit"),
            "resources": self._document.get("resources"),
        }
        return {name: {"options": options} for name in sorted(self.plan)}

    async def _scale(self, n: int, leave: Iterable[str] = ()) -> None:
        await in_thread(lambda: self._taken.scale(n, leave))

    def _memory_per_worker(self) -> int:
        limit = self._document.get("memory_limit")
        if not limit:
            raise ValueError("to scale by memory, give the cluster a memory_limit; or scale by n or cores")
        return int(limit)
