"""What people do with Dask. Each takes a client, does its work, and checks the result. Worker processes import it, too."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import (
    Client,
    Event,
    Lock,
    Queue,
    Semaphore,
    Variable,
    as_completed,
    get_client,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)


def add_one(x: int) -> int:
    return x + 1


def array_product(client: Client) -> None:
    x = da.ones((400, 400), chunks=(100, 100))
    assert (x @ x.T).sum().compute(scheduler=client) == 400.0**3


def groupby_with_shuffle(client: Client) -> None:
    frame = pd.DataFrame({"key": np.arange(2000) % 50, "value": np.arange(2000.0)})
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        shuffled = dd.from_pandas(frame, npartitions=4).shuffle("key")
        counts = client.compute(shuffled.map_partitions(lambda part: part.groupby("key").size().sum())).result()
        assert sum(counts) == 2000
        means = client.compute(dd.from_pandas(frame, npartitions=4).groupby("key").value.mean()).result()
    pd.testing.assert_series_equal(means.sort_index(), frame.groupby("key").value.mean())


def rechunk(client: Client) -> None:
    with dask.config.set({"array.rechunk.method": "p2p"}):
        x = da.arange(10_000, chunks=500).reshape(100, 100).rechunk((100, 10)).rechunk((10, 100))
        assert int(client.compute(x.sum()).result()) == sum(range(10_000))


def bag(client: Client) -> None:
    words = db.from_sequence(["a", "b", "a", "c"] * 25, npartitions=5).frequencies()
    assert dict(words.compute(scheduler=client)) == {"a": 50, "b": 25, "c": 25}


def delayed(client: Client) -> None:
    total = dask.delayed(sum)([dask.delayed(add_one)(n) for n in range(20)])
    assert client.compute(total).result() == 210


def futures(client: Client) -> None:
    assert sum(future.result() for future in as_completed(client.map(add_one, range(30)))) == 465
    data = client.scatter(list(range(10)), broadcast=True)
    assert client.submit(sum, data).result() == 45


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, by: int) -> int:
        self.n += by
        return self.n


def actor(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result()
    assert [counter.add(2).result() for _ in range(5)] == [2, 4, 6, 8, 10]


def _bump(lock: str, variable: str) -> None:
    with Lock(lock):
        shared = Variable(variable)
        shared.set(shared.get() + 1)


def coordination(client: Client) -> None:
    name = client.id
    Variable(name, client=client).set(0)
    wait(client.map(lambda _: _bump(f"lock-{name}", name), range(6), pure=False))
    assert Variable(name, client=client).get() == 6
    queue = Queue(f"queue-{name}", client=client)
    client.submit(lambda: [Queue(f"queue-{name}").put(n) for n in range(3)]).result()
    assert [queue.get(timeout=30) for _ in range(3)] == [0, 1, 2]
    event = Event(f"event-{name}", client=client)
    waiting = client.submit(lambda: Event(f"event-{name}").wait(30))
    event.set()
    assert waiting.result()
    with Semaphore(max_leases=1, name=f"semaphore-{name}"):
        pass


def _with_worker_client(n: int) -> int:
    with worker_client() as client:
        return sum(client.gather(client.map(add_one, range(n))))


def _with_get_client(n: int) -> int:
    client = get_client()
    parts = client.map(add_one, range(n))
    secede()
    total = sum(client.gather(parts))
    rejoin()
    return total


def _nested_compute(n: int) -> int:
    return int(da.arange(n, chunks=max(1, n // 3)).sum().compute())


def _scheduler_of_the_task() -> tuple[str, str]:
    return get_client().scheduler.address, get_worker().scheduler.address


def inside_tasks(client: Client) -> None:
    ours = client.scheduler.address
    for nested in (_with_worker_client, _with_get_client):
        assert client.gather(client.map(nested, range(1, 9), pure=False)) == [n * (n + 1) // 2 for n in range(1, 9)]
    assert client.gather(client.map(_nested_compute, range(3, 9), pure=False)) == [n * (n - 1) // 2 for n in range(3, 9)]
    assert set(client.gather([client.submit(_scheduler_of_the_task, pure=False) for _ in range(8)])) == {(ours, ours)}


def plain_client_in_a_task(client: Client) -> None:
    """``Client()`` wants to be the default of its process. Here it is one of its cluster only."""

    def make(address: str) -> bool:
        worker = get_worker()
        with Client(address, security=worker.security) as own:
            return own.submit(add_one, 1).result() == 2 and Client.current() is own

    assert client.submit(make, client.scheduler.address, pure=False).result()


ALL: list[Callable[[Client], None]] = [
    array_product, groupby_with_shuffle, rechunk, bag, delayed, futures, actor, coordination, inside_tasks,
    plain_client_in_a_task,
]


def process_and_thread() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def sleep_until(path: str) -> str:
    """Hold a thread until a file is there."""
    deadline = time.monotonic() + 120
    while not os.path.exists(path) and time.monotonic() < deadline:  # noqa: PTH110
        time.sleep(0.02)
    return path


def secede_and_sleep_until(path: str) -> str:
    secede()
    return sleep_until(path)


def client_of_the_worker() -> str:
    return str(get_client().id)


def workers_in_memory() -> int:
    """Count the Dask workers that something still refers to; a collection of what was made since the fork, no more:
    ending what the process has from its parent would close descriptors that have new owners.
    """
    import gc

    from distributed import Worker

    gc.collect()
    return len(Worker._instances)
