"""Dask inside a job: graphs run by the threaded scheduler on the worker process's own pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask_fleet.agent import job_clients
from dask_fleet.agent.pool import PlacePool


class GraphCancelled(Exception):
    """The job was cancelled (or ran out of time) while its graph was computed; no further task is started."""


def is_graph(value: object) -> bool:
    """Whether `value` is something Dask can compute. Cheap for everything else: no import, one look at the class."""
    if not hasattr(type(value), "__dask_graph__"):
        return False
    import dask

    return bool(dask.is_dask_collection(value))


class DaskRuntime:
    """Computes on one pool."""

    def __init__(self, pool: PlacePool) -> None:
        self._pool = pool

    def install(self) -> None:
        """Make every ``.compute()`` without a scheduler of its own run on this pool, whatever its collection's default is.

        An explicit ``scheduler=`` is respected, and so is a client that the job itself made.
        """
        job_clients.install(self.get)

    def get(self, dsk: Any, keys: Any, *, pool: Any = None, **options: Any) -> Any:
        """Compute `keys` of a graph: Dask's scheduler interface. The calling thread leaves its place meanwhile."""
        from dask.threaded import get

        if pool is not None:
            return get(dsk, keys, pool=pool, **options)
        options.pop("num_workers", None)  # the pool's places are the limit
        with self._pool.outside():
            return get(dsk, keys, pool=self._pool, **options)

    def _coordinate(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """Compute from a thread that holds no place and for which nobody in a place waits."""
        from dask.threaded import get

        options.pop("num_workers", None)
        return get(dsk, keys, pool=self._pool, **options)

    def compute(
        self, value: Any, *, report: Callable[[float, float, str], None], is_cancelled: Callable[[], bool]
    ) -> Any:
        """Compute what a job returned, telling how many tasks of the graph are done.

        Call it from a thread outside the pool. If the job has a client of its own, its cluster computes.

        Raises
        ------
        GraphCancelled
            If `is_cancelled` became true before all tasks were started.
        """
        import dask

        if job_clients.own_client() is not None:
            return dask.compute(value)[0]
        total = 0
        done = 0

        def count(_dsk: Any, state: dict[str, Any]) -> None:
            nonlocal total
            total = sum(len(state[part]) for part in ("ready", "waiting"))
            report(0.0, float(total), "tasks")

        def stop(_key: Any, _dsk: Any, _state: Any) -> None:
            if is_cancelled():
                raise GraphCancelled

        def tick(_key: Any, _result: Any, _dsk: Any, _state: Any, _worker: Any) -> None:
            nonlocal done
            done += 1
            report(float(done), float(total), "tasks")

        def get(dsk: Any, keys: Any, **options: Any) -> Any:
            # Passed along, not registered: Dask keeps registered callbacks process-wide, where other jobs would feel them.
            return self._coordinate(dsk, keys, callbacks=[(None, count, stop, tick, None)], **options)

        return dask.compute(value, scheduler=get)[0]
