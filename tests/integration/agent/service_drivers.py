"""A service whose functions need Dask clusters of their own."""

import asyncio
import ctypes
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_fleet import Service, cancelled, get_client, progress

service = Service("trial")


def where(_: int = 0) -> int:
    return os.getpid()


def total(n: int, chunk: int = 100) -> da.Array:
    return da.arange(n, chunks=chunk).sum()


@service.endpoint(local_tasks=50)
def graph(n: int, chunk: int = 100) -> object:
    """About n / chunk · 1.3 tasks."""
    return total(n, chunk)


@service.endpoint(local_tasks=50)
def pids(n: int) -> object:
    """Where the tasks of a graph of n + 1 tasks run."""
    return dask.delayed(lambda found: sorted(set(found)))([dask.delayed(where)(i) for i in range(n)])


@service.endpoint(placement="cluster", workers=2, threads_per_worker=1, resources={"GPU": 1})
def pids_on_cluster(n: int) -> object:
    return dask.delayed(lambda found: sorted(set(found)))([dask.delayed(where)(i) for i in range(n)])


@service.endpoint(placement="worker")
def pids_on_worker(n: int) -> object:
    return dask.delayed(lambda found: sorted(set(found)))([dask.delayed(where)(i) for i in range(n)])


@service.endpoint(placement="worker")
def forbidden() -> object:
    return get_client()


@service.endpoint(local_tasks=50)
def computes(n: int) -> list[int]:
    """Where the tasks of a plain compute run."""
    return sorted(set(dask.compute(*[dask.delayed(where)(i) for i in range(n)])))


@service.endpoint(placement="cluster")
def computes_on_cluster(n: int) -> list[int]:
    return sorted(set(dask.compute(*[dask.delayed(where)(i) for i in range(n)])))


@service.endpoint(local_tasks=50)
def persists(n: int) -> dict[str, object]:
    kept = da.ones(n, chunks=10).map_blocks(lambda block: block * where()).persist()
    from distributed import futures_of

    return {"futures": len(futures_of(kept)), "pids": sorted({int(pid) for pid in kept.compute()})}


@service.endpoint()
def client_of_its_own() -> dict[str, object]:
    from distributed import default_client

    client = get_client()
    again = get_client()
    found = sorted(set(client.gather(client.map(where, range(8), pure=False))))
    plain = sorted(set(dask.compute(*[dask.delayed(where)(i) for i in range(4)])))
    return {
        "same": client is again, "default": default_client() is client, "submitted": found, "plain": plain,
        "mine": os.getpid(), "thread": threading.current_thread().name,
    }  # fmt: skip


@service.endpoint()
async def client_in_a_coroutine(n: int) -> int:
    client = await get_client()
    return await client.gather(client.submit(sum, list(range(n))))


@service.endpoint()
def drives(n: int) -> int:
    """A driver: waits in its own thread for what runs in the same pool, if it must."""
    client = get_client()
    return sum(client.gather(client.map(lambda x: 2 * x, range(n))))


@service.endpoint()
def drives_on_a_loop(n: int) -> int:
    """A driver with an event loop of its own, made twice: each has a client, which ends with it."""

    async def main() -> int:
        client = await get_client()
        return sum(await client.gather(client.map(lambda x: 2 * x, range(n), pure=False)))

    first = asyncio.run(main())
    assert first == asyncio.run(main())
    return first


@service.endpoint()
def drives_from_threads(n: int) -> int:
    """A driver whose threads ask all at once, with the job's context, and which waits for them in its place."""

    def ask() -> int:
        client = get_client()
        return sum(client.gather(client.map(lambda x: 2 * x, range(n), pure=False)))

    with ThreadPoolExecutor(4) as threads:
        found = {future.result() for future in [threads.submit(copy_context().run, ask) for _ in range(4)]}
    (total,) = found
    return total


@service.endpoint(local_tasks=5)
def computes_in_threads(n: int) -> int:
    """Plain computes, of a small and of a large graph, in threads and on an event loop of a function."""

    def small() -> int:
        return dask.delayed(sum)([dask.delayed(int)(i) for i in range(2)]).compute()

    def large() -> int:
        return 2 * dask.delayed(sum)([dask.delayed(int)(i) for i in range(n)]).compute()

    async def main() -> int:
        assert small() == 1
        return await asyncio.to_thread(large)

    with ThreadPoolExecutor(3) as threads:
        ones = [threads.submit(small), threads.submit(copy_context().run, small)]
        moved = threads.submit(copy_context().run, large)
        assert [one.result() for one in ones] == [1, 1]
        total = moved.result()
    assert asyncio.run(main()) == total
    return total


@service.endpoint()
def inside_tasks() -> dict[str, object]:
    from distributed import get_client as get_dask_client
    from distributed import get_worker, secede, worker_client

    def nested(n: int) -> int:
        with worker_client() as client:
            return client.submit(lambda: n + 1, pure=False).result()

    def nested_again(n: int) -> int:
        future = get_dask_client().submit(lambda: n + 2, pure=False)
        secede()
        return future.result()

    def nested_ours(n: int) -> int:
        future = get_client().submit(lambda: n + 3, pure=False)
        secede()
        return future.result()

    client = get_client()
    return {
        "name": str(client.submit(lambda: get_worker().name).result()),
        "values": client.gather([client.submit(f, 1) for f in (nested, nested_again, nested_ours)]),
    }


@service.endpoint(local_tasks=50)
def frames(kind: str) -> object:
    """Collections of every kind, each large enough for a cluster."""
    frame = pd.DataFrame({"a": np.arange(2000) % 100, "b": 1})
    match kind:
        case "array":
            x = da.ones((300, 300), chunks=(60, 60))
            return (x @ x.T).mean()
        case "shuffle":
            return dd.from_pandas(frame, npartitions=40).shuffle("a").map_partitions(len).sum()
        case "bag":
            return db.range(1000, npartitions=100).map(lambda x: x + 1).sum()
    return dask.delayed(sum)([dask.delayed(int)(i) for i in range(100)])


@service.endpoint(workers=1)
def compute_slowly(path: str) -> int:
    """One task of the cluster waits for a file."""

    def wait(path: str) -> int:
        Path(path + ".started").touch()
        while not Path(path).exists():
            time.sleep(0.005)
        return 7

    return get_client().submit(wait, path).result()


@service.endpoint(local_tasks=3)
def graph_slowly(path: str, n: int = 20) -> object:
    def wait(i: int) -> int:
        Path(path + ".started").touch()
        while not Path(path).exists():
            time.sleep(0.005)
        return i

    return dask.delayed(sum)([dask.delayed(wait)(i) for i in range(n)])


@service.endpoint(local_tasks=3)
def graph_that_raises() -> object:
    @dask.delayed
    def boom(i: int) -> int:
        raise LookupError(f"inside the graph {i >= 0}")

    return dask.delayed(sum)([boom(i) for i in range(10)])


@service.endpoint()
def closes_its_client() -> int:
    with get_client() as client:
        first = client.submit(int, 1).result()
    return first + get_client().submit(int, 2).result()


@service.endpoint()
async def sleeps(path: str) -> None:
    while not Path(path).exists() and not cancelled():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)
    progress(1, 1)


@service.endpoint()
def threads() -> int:
    return threading.active_count()


@service.endpoint()
def double(n: int) -> int:
    return 2 * n


@service.endpoint(placement="cluster", workers=1, threads_per_worker=64)
def too_wide(n: int) -> object:
    return total(n)


@service.endpoint(placement="cluster", workers=1, timeout="2s")
def graph_that_holds_the_lock(path: str) -> object:
    """A task that never ends, in C, with the interpreter's lock: it hears nothing any more."""

    @dask.delayed
    def hold(path: str) -> int:
        Path(path + ".started").touch()
        return int(ctypes.PyDLL(None).sleep(1_000_000))

    return dask.delayed(sum)([hold(path)])
