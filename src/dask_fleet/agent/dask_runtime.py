"""Dask inside a job: graphs run by the threaded scheduler on the worker process's own pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dask_fleet.agent import graphs, job_clients
from dask_fleet.agent.graphs import Size
from dask_fleet.agent.pool import PlacePool
from dask_fleet.model.placement import PlacementMode


class GraphCancelled(Exception):
    """The job was cancelled (or ran out of time) while its graph was computed; no further task is started."""


class GraphTooLarge(Exception):
    """The graph has more tasks than are to run on this process."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.size = size


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

        An explicit ``scheduler=`` is respected, and so is a client that the job itself made. Graphs that are too large for
        this pool go to the cluster of the job.
        """
        job_clients.install(self)

    asynchronous = False
    """Asked of what Dask takes for a client."""

    def get(self, dsk: Any, keys: Any, *, pool: Any = None, **options: Any) -> Any:
        """Compute `keys` of a graph: Dask's scheduler interface. The calling thread leaves its place meanwhile."""
        from dask.threaded import get

        if pool is not None:
            return get(dsk, keys, pool=pool, **options)
        options.pop("num_workers", None)  # the pool's places are the limit
        job = _movable()
        if job is not None:
            size, dsk = graphs.large(dsk, job.placement.local_tasks)
            if size is not None:
                return job.connect(size).get(dsk, keys, **options)
        with self._pool.outside():
            return get(dsk, keys, pool=self._pool, **options)

    def persist(self, collections: Any, *, optimize_graph: bool = True, **options: Any) -> Any:
        """Compute collections and keep them, where they were computed: what Dask asks of a client."""
        import dask

        job = _movable()
        if job is not None:
            size = _size_of_persist(collections, job.placement.local_tasks, optimize_graph=optimize_graph)
            if size is not None:
                return job.connect(size).persist(collections, optimize_graph=optimize_graph, **options)
        # Not the method itself: of a method, Dask would ask its object to persist.
        kept = dask.persist(
            *collections, traverse=False, optimize_graph=optimize_graph,
            scheduler=partial(self._local), **options,
        )  # fmt: skip
        return list(kept)

    def _local(self, dsk: Any, keys: Any, **options: Any) -> Any:
        with self._pool.outside():
            return self._coordinate(dsk, keys, **options)

    def _coordinate(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """Compute from a thread that holds no place and for which nobody in a place waits."""
        from dask.threaded import get

        options.pop("num_workers", None)
        return get(dsk, keys, pool=self._pool, **options)

    def compute(
        self,
        value: Any,
        *,
        report: Callable[[float, float, str], None],
        is_cancelled: Callable[[], bool],
        limit: int | None = None,
    ) -> Any:
        """Compute what a job returned, telling how many tasks of the graph are done.

        Call it from a thread outside the pool. If the job has a client of its own, its cluster computes.

        Raises
        ------
        GraphTooLarge
            If it has more than `limit` tasks; nothing was computed.
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
            if limit is not None:
                size, dsk = graphs.large(dsk, limit, again=True)
                if size is not None:
                    raise GraphTooLarge(size)
            # Passed along, not registered: Dask keeps registered callbacks process-wide, where other jobs would feel them.
            return self._coordinate(dsk, keys, callbacks=[(None, count, stop, tick, None)], **options)

        return dask.compute(value, scheduler=get)[0]


def _movable() -> job_clients.Driver | None:
    """Return the job whose code runs here, if a large graph of it may go to a cluster.

    Where an event loop runs nobody can wait for one: an ``async`` function awaits ``dask_fleet.get_client()`` instead.
    """
    job = job_clients.driver()
    if job is None or job.placement.mode is PlacementMode.WORKER or job_clients.on_event_loop():
        return None
    return job


class _Looked(Exception):
    """Carries a size out of Dask's call of a scheduler."""


def _size_of_persist(collections: Any, limit: int, *, optimize_graph: bool) -> Size | None:
    import dask

    def look(dsk: Any, _keys: Any, **_options: Any) -> Any:
        raise _Looked(graphs.large(dsk, limit, again=True)[0])

    try:
        dask.persist(*collections, traverse=False, optimize_graph=optimize_graph, scheduler=look)
    except _Looked as looked:
        size: Size | None = looked.args[0]
        return size
    return None
