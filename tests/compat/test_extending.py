"""Plug-ins, functions run on all processes, uploads, resources, restarts, asynchronous clients."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, as_completed, get_worker, wait
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from tests.compat.take import THREADS, WORKERS, Served
from tests.compat.test_futures import until


def test_run(client: Client) -> None:
    pids = client.run(os.getpid)
    assert len(pids) == WORKERS
    assert os.getpid() not in pids.values()
    assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers)) == WORKERS
    names = client.run(lambda dask_worker: dask_worker.name)
    assert len(set(names.values())) == WORKERS

    async def later(dask_worker: Any) -> int:
        await asyncio.sleep(0)
        return int(dask_worker.state.nthreads)

    assert set(client.run(later).values()) == {THREADS}


def test_workers_are_processes_of_their_own(client: Client) -> None:
    assert len(set(client.run(os.getpid).values())) == WORKERS


class Counting(WorkerPlugin):
    """Counts what tasks of its worker become."""

    name = "counting"

    def setup(self, worker: Any) -> None:
        worker.counted = []

    def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
        if finish == "memory":
            get_counted().append(key)

    def teardown(self, worker: Any) -> None:
        del worker.counted


def get_counted() -> list[str]:
    worker = next(iter(worker for worker in __import__("distributed").Worker._instances if hasattr(worker, "counted")))
    counted: list[str] = worker.counted
    return counted


def test_worker_plugin(client: Client) -> None:
    client.register_plugin(Counting())
    wait(client.map(lambda n: n + 1, range(10), pure=False))
    until(lambda: sum(client.run(lambda dask_worker: len(dask_worker.counted)).values()) >= 10)
    client.unregister_worker_plugin("counting")
    assert not any(client.run(lambda dask_worker: hasattr(dask_worker, "counted")).values())


class Watching(SchedulerPlugin):
    """Notes clients."""

    name = "watching"

    def start(self, scheduler: Any) -> None:
        scheduler.watched = []
        self.scheduler = scheduler

    def add_client(self, scheduler: Any, client: str) -> None:
        scheduler.watched.append(client)


def test_scheduler_plugin(client: Client) -> None:
    client.register_plugin(Watching())
    with Client(client.scheduler.address, security=client.security, set_as_default=False) as other:
        assert other.id in client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.watched)
    client.unregister_scheduler_plugin("watching")


def test_upload_file(client: Client, tmp_path: Path) -> None:
    module = tmp_path / "uploaded_by_compat.py"
    module.write_text("def answer():\n    return 42\n")
    client.upload_file(str(module))

    def use() -> int:
        import uploaded_by_compat

        answer: int = uploaded_by_compat.answer()
        return answer

    assert client.gather(client.map(lambda _: use(), range(4), pure=False)) == [42] * 4


def test_active_memory_manager(client: Client) -> None:
    assert client.amm.running()
    client.amm.stop()
    assert not client.amm.running()
    kept = client.scatter(np.arange(10_000), broadcast=True)
    assert len(client.who_has([kept])[kept.key]) == WORKERS
    # Its standard policy drops replicas that nobody needs.
    until(lambda: client.amm.run_once() or len(client.who_has([kept])[kept.key]) == 1)
    assert kept.result().sum() == 49_995_000


def test_retire_workers_keeps_data(fleet: Served) -> None:
    """Upstream keeps it here, too; scaling down by `SpecCluster` does not, see below."""
    with fleet.cluster(2, 1) as made, Client(made) as client:
        client.wait_for_workers(2, timeout=60)
        workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
        kept = client.scatter(np.arange(1000), workers=workers[:1])
        client.retire_workers(workers[:1], close_workers=False, remove=False)
        assert workers[1] in client.who_has([kept])[kept.key]
        assert client.gather(kept).sum() == 499_500


def test_restart(client: Client) -> None:
    lost = client.submit(sum, [1, 2], pure=False)
    wait(lost)
    client.restart()
    client.wait_for_workers(WORKERS, timeout=60)
    assert lost.status == "cancelled"
    assert client.submit(sum, [1, 2], pure=False).result() == 3
    assert sum(client.nthreads().values()) == WORKERS * THREADS


def test_asynchronous_client(cluster: Any) -> None:
    async def main() -> None:
        async with Client(
            cluster.scheduler_address, security=cluster.security, asynchronous=True
        ) as client:
            assert await client.submit(sum, [1, 2, 3]) == 6
            futures = client.map(lambda n: n * n, range(10))
            assert sorted([await future async for future in as_completed(futures)]) == [n * n for n in range(10)]
            assert await client.gather(futures) == [n * n for n in range(10)]
            data = await client.scatter([1, 2, 3])
            assert await client.submit(sum, data) == 6
            assert len(await client.run(os.getpid)) == WORKERS

    asyncio.run(main())


def test_coroutines_as_tasks(client: Client) -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0.01)
        return n + 1

    assert client.gather(client.map(later, range(10), pure=False)) == list(range(1, 11))


def test_many_clients_at_once(cluster: Any) -> None:
    clients = [Client(cluster, set_as_default=False) for _ in range(5)]
    try:
        futures = [client.submit(pow, 2, n) for n, client in enumerate(clients)]
        assert [future.result() for future in futures] == [1, 2, 4, 8, 16]
    finally:
        for client in clients:
            client.close()


def test_resources(fleet: Served) -> None:
    with fleet.cluster(1, 1, resources={"GPU": 2}) as made, Client(made) as client:
        client.wait_for_workers(1, timeout=60)
        info = client.scheduler_info(n_workers=-1)["workers"]
        assert [worker["resources"] for worker in info.values()] == [{"GPU": 2.0}]
        assert client.submit(lambda: get_worker().state.total_resources["GPU"], resources={"GPU": 1}).result() == 2
        impossible = client.submit(sum, [1], resources={"GPU": 3})
        until(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.unrunnable)) == 1)
        impossible.cancel()


def test_configuration_of_a_cluster(fleet: Served) -> None:
    config = {"distributed.scheduler.allowed-failures": 17, "distributed.worker.memory.spill": False}
    with fleet.cluster(1, 1, config=config, preload=["wave"]) as made, Client(made) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 17
        assert set(client.run(lambda dask_worker: dask_worker.memory_manager.memory_spill_fraction).values()) == {False}
        assert set(client.run(lambda: "wave" in __import__("sys").modules).values()) == {True}


def test_memory_limit_and_thresholds(fleet: Served) -> None:
    with fleet.cluster(1, 1, memory_limit="700MiB") as made, Client(made) as client:
        client.wait_for_workers(1, timeout=60)
        limits = client.run(
            lambda dask_worker: (
                dask_worker.memory_manager.memory_limit,
                dask_worker.memory_manager.memory_spill_fraction,
                dask_worker.memory_manager.memory_pause_fraction,
            )
        )
        assert set(limits.values()) == {(700 << 20, 0.6, 0.8)}


def test_more_data_than_memory_is_spilled(fleet: Served) -> None:
    with fleet.cluster(1, 1, memory_limit="600MiB") as made, Client(made) as client:
        client.wait_for_workers(1, timeout=60)
        parts = client.map(lambda n: np.full(40 << 20, n, "u1"), range(20), pure=False)
        totals = client.map(lambda part: int(part[::1 << 20].sum()), parts)
        assert client.gather(totals) == [40 * n for n in range(20)]
        spilled = client.run(lambda dask_worker: dask_worker.data.spilled_total.disk)
        assert sum(spilled.values()) > 100 << 20


@pytest.mark.parametrize("asynchronous", [False, True])
def test_scaling_down_keeps_scattered_data(fleet: Served, *, asynchronous: bool) -> None:
    """`SpecCluster.scale(fewer)` loses it."""

    async def with_loop() -> None:
        async with fleet.cluster(3, 1, asynchronous=True) as made, Client(made, asynchronous=True) as client:
            await client.wait_for_workers(3, timeout=60)
            kept = await client.scatter(list(range(60)), hash=False)
            await made.scale(1)
            while len((await client.scheduler.identity(n_workers=-1))["workers"]) > 1:  # noqa: ASYNC110 - Dask tells nobody
                await asyncio.sleep(0.05)
            assert await client.gather(kept) == list(range(60))

    if asynchronous:
        asyncio.run(asyncio.wait_for(with_loop(), 90))
        return
    with fleet.cluster(3, 1) as made, Client(made) as client:
        client.wait_for_workers(3, timeout=60)
        kept = client.scatter(list(range(60)), hash=False)
        assert len({worker for workers in client.who_has(kept).values() for worker in workers}) == 3
        made.scale(1)
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
        assert client.gather(kept) == list(range(60))
        made.scale(3)
        client.wait_for_workers(3, timeout=60)
        assert client.submit(sum, kept).result() == 1770


def test_adaptive_scaling(fleet: Served) -> None:
    from distributed import Event

    with fleet.cluster(1, 1) as made, Client(made) as client:
        made.adapt(minimum=1, maximum=3, interval="100ms", wait_count=2)
        busy = client.map(lambda _: Event("enough").wait(60), range(12), pure=False)
        client.wait_for_workers(3, timeout=60)
        Event("enough", client=client).set()
        assert all(client.gather(busy))
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
