"""Three schedulers over the same two processes at the same time, and what people do with Dask on each of them."""

from __future__ import annotations

import asyncio
import copy
import threading
import traceback
from collections.abc import Iterator

import dask
import pytest
from distributed import Client
from tests.integration.clusters import workloads
from tests.integration.clusters.site import Cluster, OnLoop, WorkerProcess


@pytest.fixture(autouse=True)
def configuration() -> Iterator[None]:
    """Put Dask's configuration back: programs in threads of one process change it side by side, and each restores what the
    one before it had set. The next test of this process would have a scheduler without a client."""
    before = copy.deepcopy(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.fixture(scope="module")
def three(here: OnLoop, shared: list[WorkerProcess]) -> list[Cluster]:
    async def make() -> list[Cluster]:
        return list(await asyncio.gather(*(here.site.cluster(*shared) for _ in range(3))))

    return here.do(make())


def test_all_at_once_on_three_clusters_in_two_processes(three: list[Cluster], shared: list[WorkerProcess]) -> None:
    failures: list[str] = []
    pids: list[set[int]] = []

    def use(cluster: Cluster, shift: int) -> None:
        try:
            with cluster.client(set_as_default=False) as client, client.as_current():
                pids.append(set(client.run(workloads.os.getpid).values()))
                for n in range(len(workloads.ALL)):  # each begins with another one, so that different things meet
                    workload = workloads.ALL[(n + shift) % len(workloads.ALL)]
                    workload(client)
        except BaseException:  # noqa: BLE001 - told by the test's own thread
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=use, args=(cluster, 3 * n)) for n, cluster in enumerate(three)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a workload hangs"
    assert not failures, failures[0]
    assert pids == [{process.pid for process in shared}] * 3


def test_closing_one_disturbs_no_other(here: OnLoop, three: list[Cluster]) -> None:
    with three[0].client(set_as_default=False) as first, three[1].client(set_as_default=False) as second:
        held = first.scatter({"x": 41}, broadcast=True)
        many = second.map(workloads.add_one, range(500))
        closed = here.do(here.site.cluster(*three[2].members.values()))
        left = here.do(closed.close())
        assert [frame.busy for frame in left] == [0, 0]
        assert sum(second.gather(many)) == sum(range(1, 501))
        assert first.submit(workloads.add_one, held["x"]).result() == 42


def test_two_clusters_do_not_meet_in_their_clients(here: OnLoop, three: list[Cluster]) -> None:
    clients = [cluster.client(set_as_default=False) for cluster in three[:2]]
    try:
        ids = [
            {
                client.submit(workloads.client_of_the_worker, workers=[worker], pure=False).result()
                for worker in _workers(client)
            }
            for client in clients
        ]
        assert not ids[0] & ids[1]
        assert [len(some) for some in ids] == [2, 2]
    finally:
        for client in clients:
            client.close()


def test_tasks_that_ask_at_once_share_one_client(three: list[Cluster]) -> None:
    with three[0].client(set_as_default=False) as client:
        worker = _workers(client)[0]
        ask = [client.submit(workloads.client_of_the_worker, workers=[worker], pure=False) for _ in range(20)]
        assert len(set(client.gather(ask))) == 1


def _workers(client: Client) -> list[str]:
    return list(client.scheduler_info(n_workers=-1)["workers"])
