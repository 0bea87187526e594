"""Scaling down keeps data: what was scattered, and what was computed and would have to be computed again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client, Future, LocalCluster
from distributed.deploy.cluster import Cluster
from tests.promises.form import FULL, Record

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

PIECES, SIZE = (400, 1_000_000) if FULL else (80, 20_000)
BUSY_S = 35.0
"""Longer than anything that once gave up waiting for the data of workers that leave."""
WORKERS = 4
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Verdict:
    """What became of data when most workers left."""

    pieces: int
    kept: int
    """Pieces, scattered and computed, that are what they were."""
    computed_again: int


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    args = ("--no-services", "--nworkers", str(WORKERS), "--nthreads", "1")
    with ServedFleet([], tmp_path_factory.mktemp("scaling") / "data", args=args) as served:
        yield served


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def workers(client: Client) -> int:
    return len(client.scheduler_info(n_workers=-1)["workers"])


class Data:
    """Pieces on all workers, half of them scattered, half computed by tasks that write down that they ran."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._runs = client, folder / "runs"
        self._runs.touch()

        def compute(n: int, runs: str = str(self._runs), size: int = SIZE) -> tuple[int, bytes]:
            with open(runs, "a") as out:  # noqa: PTH123 - by value, with nothing imported; one write each
                out.write(f"{n}\n")
            return n, bytes(size)

        on = list(client.scheduler_info(n_workers=-1)["workers"])
        self._scattered: list[Future] = [
            client.scatter((n, bytes(SIZE)), workers=[on[n % len(on)]], hash=False) for n in range(PIECES // 2)
        ]
        self._computed: list[Future] = [
            client.submit(compute, n, workers=[on[n % len(on)]], allow_other_workers=True, pure=False)
            for n in range(PIECES // 2)
        ]
        until(lambda: all(future.done() for future in self._computed), "the data")

    def judge(self) -> Verdict:
        kept = 0
        for futures in (self._scattered, self._computed):
            for n, future in enumerate(futures):
                try:
                    kept += self._client.gather(future, direct=False) == (n, bytes(SIZE))
                except Exception:  # noqa: BLE001 - it is lost, in one of several ways
                    continue
        return Verdict(PIECES, kept, len(self._runs.read_text().split()) - len(self._computed))


def scaled(cluster: Cluster, folder: Path) -> Verdict:
    """Put data on all workers, and let all but one leave."""
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(WORKERS, timeout=PATIENCE_S)
        data = Data(client, folder)
        cluster.scale(1)
        until(lambda: workers(client) == 1, "the others to leave")
        return data.judge()


def test_scaling_down_keeps_data(fleet: ServedFleet, tmp_path: Path, record_property: Record) -> None:
    with FleetCluster(WORKERS, 1, url=fleet.url, token=fleet.token, quiet=True) as cluster:
        verdict = scaled(cluster, tmp_path)
    record_property("figures", str(verdict))
    assert verdict == Verdict(PIECES, PIECES, 0)


def test_a_busy_scheduler_moves_the_data_when_it_can(fleet: ServedFleet, tmp_path: Path, record_property: Record) -> None:
    """It takes in a large graph, say, and moves nothing meanwhile: the workers wait for it, however long that is."""

    def be_busy(seconds: float) -> None:
        __import__("time").sleep(seconds)

    with (
        FleetCluster(2, 1, url=fleet.url, token=fleet.token, quiet=True) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        data = Data(client, tmp_path)
        busy = threading.Thread(target=client.run_on_scheduler, args=(be_busy, BUSY_S))
        busy.start()
        cluster.scale(1)

        def waits() -> str:
            return str(fleet.request("GET", f"/v1/clusters/{cluster.cluster_id}").json()["waiting_for"])

        until(lambda: "the data of 1 worker to be moved" in waits(), "it to say what it waits for")
        busy.join(PATIENCE_S)
        until(lambda: workers(client) == 1, "the other to leave")
        verdict = data.judge()
        until(lambda: waits() == "None", "it to wait for nothing")
    record_property("figures", str(verdict))
    assert verdict == Verdict(PIECES, PIECES, 0)


def test_adapting_keeps_data(fleet: ServedFleet, tmp_path: Path, record_property: Record) -> None:
    """It grows for work, data comes to lie on what it has grown by, and it shrinks when there is no more work."""
    with (
        FleetCluster(1, 1, url=fleet.url, token=fleet.token, quiet=True) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=1, maximum=WORKERS, interval="100ms", wait_count=20, target_duration="500ms")
        work = client.map(lambda n: __import__("time").sleep(0.2) or n, range(1_000), pure=False)
        until(lambda: workers(client) >= 3, "it to grow")
        client.cancel(work)
        data = Data(client, tmp_path)
        until(lambda: workers(client) == 1, "it to shrink")
        verdict = data.judge()
    record_property("figures", str(verdict))
    assert verdict == Verdict(PIECES, PIECES, 0)


def test_the_checker_notices_workers_that_leave_with_their_data(tmp_path: Path, record_property: Record) -> None:
    """Dask's own `LocalCluster` lets workers leave by their names, which its scheduler does not find."""
    with LocalCluster(
        n_workers=WORKERS, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0",
        local_directory=str(tmp_path),
    ) as cluster:  # fmt: skip
        verdict = scaled(cluster, tmp_path)
    record_property("figures", str(verdict))
    assert verdict.kept < PIECES or verdict.computed_again
