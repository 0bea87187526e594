"""The size of a `FleetCluster`: what is wanted, what is there, and how it changes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable
from typing import Any

import dask.config
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.cluster import Cluster

from dask_fleet.client.adaptive import FleetAdaptive
from dask_fleet.client.cluster_request import amount, amount_bytes, whole
from dask_fleet.client.cluster_taking import Taken
from dask_fleet.client.control import in_thread


class SizedCluster(Cluster):  # type: ignore[misc]
    """The part of a `FleetCluster` that changes its size, as Dask and its ``Adaptive`` ask for it."""

    _taken: Taken
    _leaving: set[int | str]
    """Names of workers that were given back and are still there: they are not to be given back twice."""

    def _check_use(self) -> None:
        """Raise if the cluster is of no use any more."""
        raise NotImplementedError

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
            If they are no numbers of at least 0, or the workers' memory is not known.
        RuntimeError
            If the cluster is not started, or closed.
        QuotaExceeded, ClusterImpossible
            If there can never be so many.
        """
        wanted = 0 if n is None else whole("n", n, 0)
        if memory is not None:
            wanted = max(wanted, math.ceil(amount_bytes("memory", memory) / self._memory_per_worker()))
        if cores is not None:
            wanted = max(wanted, math.ceil(amount("cores", cores) / self._threads_per_worker()))
        self._check_use()
        if self.asynchronous:
            return self._spawn(self._scale(wanted), "scale")
        return self.sync(self._scale, wanted)

    def adapt(
        self,
        Adaptive: type[Adaptive] = FleetAdaptive,  # noqa: N803 - as Dask calls it
        minimum: int | None = 0,
        maximum: float | None = math.inf,
        minimum_cores: float | None = None,
        maximum_cores: float | None = None,
        minimum_memory: str | float | None = None,
        maximum_memory: str | float | None = None,
        **options: Any,
    ) -> Any:
        """Let the number of workers follow the load; see ``distributed.Adaptive``.

        Parameters
        ----------
        minimum, maximum
            Workers; ``None`` for what Dask's configuration says.
        minimum_cores, maximum_cores, minimum_memory, maximum_memory
            Or as many workers as have so much together.
        options
            Of ``distributed.Adaptive``: ``interval``, ``wait_count``, ``target_duration``.

        Raises
        ------
        ValueError
            If they are no numbers of at least 0, `maximum` is less than `minimum`, or the workers' memory is not known.
        RuntimeError
            If the cluster is not started, or closed.
        """
        low, high = (
            dask.config.get(f"distributed.adaptive.{name}") if given is None else given
            for name, given in (("minimum", minimum), ("maximum", maximum))
        )
        low = whole("minimum", low, 0)
        if not (isinstance(high, float) and high == math.inf):
            high = whole("maximum", high, 0)
        threads = self._threads_per_worker()
        if minimum_cores is not None:
            low = max(low, math.ceil(amount("minimum_cores", minimum_cores) / threads))
        if maximum_cores is not None:
            high = min(high, math.floor(amount("maximum_cores", maximum_cores) / threads))
        if minimum_memory is not None:
            low = max(low, math.ceil(amount_bytes("minimum_memory", minimum_memory) / self._memory_per_worker()))
        if maximum_memory is not None:
            high = min(high, math.floor(amount_bytes("maximum_memory", maximum_memory) / self._memory_per_worker()))
        if high < low:
            raise ValueError(f"maximum must be at least minimum: at most {high} workers and at least {low} cannot be")
        self._check_use()
        return super().adapt(Adaptive=Adaptive, minimum=low, maximum=high, **options)

    async def scale_down(self, workers: Iterable[Any]) -> None:
        """Give these workers back, by name; of those that are still to come (see `plan`), any."""
        known = {str(name): name for name in self.observed}
        names = {known.get(str(worker), worker) for worker in workers} - self._leaving
        there = names & self.observed
        self._leaving |= there
        try:
            await self._scale(max(0, self.n_workers - len(names)), map(str, there))
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
    def plan(self) -> set[int | str]:
        """Names of the workers that are to be there; of those that are still to come, stand-ins."""
        observed = self.observed
        self._leaving &= observed
        there = _in_order(observed - self._leaving)
        wanted = self.n_workers
        return {*there[:wanted], *(f"to come {number}" for number in range(len(there), wanted))}

    @property
    def requested(self) -> set[int | str]:
        """What the server has been asked for: the plan, always."""
        return self.plan

    @property
    def observed(self) -> set[int | str]:
        """Names of the workers that have joined: numbers, as in Dask's own clusters."""
        workers = list(self.scheduler_info["workers"].values())  # at once: the event loop's thread changes them
        return {worker["name"] for worker in workers}

    @property
    def worker_spec(self) -> dict[int | str, dict[str, Any]]:
        """Options of each worker of the plan, as ``distributed.SpecCluster`` has them."""
        options = {
            "nthreads": self._document.get("threads_per_worker"),
            "memory_limit": self._document.get("memory_limit"),
            "resources": self._document.get("resources"),
        }
        return {name: {"options": options} for name in _in_order(self.plan)}

    async def _scale(self, n: int, leave: Iterable[str] = ()) -> None:
        await in_thread(lambda: self._taken.scale(n, leave))

    def _threads_per_worker(self) -> int:
        return int(self._document.get("threads_per_worker") or self._taken.body.get("threads_per_worker") or 1)

    def _memory_per_worker(self) -> int:
        limit = self._document.get("memory_limit")
        if not limit:
            raise ValueError("to scale by memory, give the cluster a memory_limit; or scale by n or cores")
        return int(limit)


def _in_order(names: Iterable[int | str]) -> list[int | str]:
    """Return names in the order of their numbers; those that are none come last."""
    return sorted(names, key=lambda name: (isinstance(name, str), name))
