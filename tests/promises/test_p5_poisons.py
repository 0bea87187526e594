"""P5 for clusters: nine ways to ruin a cluster from within, and a neighbour who notices none of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, KilledWorker, LocalCluster
from tests.integration.small_disk import small_disk
from tests.promises import poisoner
from tests.promises.form import FULL, Record

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

ROUND = 200 if FULL else 20
PATIENCE_S = 120.0
SLOTS = 6
NO_SPARES = {"FLEET_SPARE_CLUSTERS": "0"}  # slots are counted


def triple(n: int) -> int:
    return 3 * n


@dataclass
class Verdict:
    """How the neighbour fared."""

    right: int = 0
    wrong: int = 0
    longest_s: float = 0.0
    """The longest that a round of its tasks took."""
    replaced: int = 0
    """Its worker processes that are not those of before."""


class Neighbour:
    """Someone with a cluster of two workers, who computes all the time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client.wait_for_workers(2, timeout=PATIENCE_S)
        self.pids = set(client.run(os.getpid).values())
        self.address = client.scheduler.address

    def compute(self, verdict: Verdict, *, timeout_s: float = PATIENCE_S) -> None:
        """Compute a round of tasks."""
        begun = time.monotonic()
        futures = [self.client.submit(triple, n, pure=False) for n in range(ROUND)]
        for n, future in enumerate(futures):
            try:
                good = future.result(timeout=timeout_s) == 3 * n
            except Exception:  # noqa: BLE001 - whatever it is, it is not the result
                good = False
            verdict.right += good
            verdict.wrong += not good
        verdict.longest_s = max(verdict.longest_s, round(time.monotonic() - begun, 2))

    def end(self, verdict: Verdict) -> None:
        """Look whether all is as it was."""
        verdict.replaced = len(self.pids - set(self.client.run(os.getpid).values()))
        assert self.client.scheduler.address == self.address


class Bad:
    """The process of the user who ruins clusters."""

    def __init__(self, fleet: ServedFleet, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(poisoner.__file__)), fleet.url, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**fleet.environment, "TOKEN": fleet.token},
        )  # fmt: skip
        self._said: dict[str, str] = {}
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            name, word, *rest = line.split(None, 2)
            self._said[f"{name} {word}"] = "".join(rest).strip()
        self._ended = True

    def take(self, poison: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{poison}\n")
        self._process.stdin.flush()

    def said(self, poison: str, word: str) -> str | None:
        assert not self._ended, "it has died of its own poison"
        return self._said.get(f"{poison} {word}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait(10)
            self._reader.join(10)
            self._process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("poison")
    (folder / "ends_at_once.py").write_text("import os\n\nos._exit(3)\n")
    with small_disk(folder / "small", size_bytes=32 << 20):
        yield folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[ServedFleet]:
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    args = ("--no-services", "--nworkers", str(SLOTS), "--nthreads", "1")
    with ServedFleet([], folder / "data", args=args, env={"PYTHONPATH": path, **NO_SPARES}) as served:
        yield served


@pytest.fixture(scope="module")
def neighbour(fleet: ServedFleet) -> Iterator[Neighbour]:
    with (
        FleetCluster(2, 1, url=fleet.url, token=fleet.token, quiet=True) as made,
        Client(made, set_as_default=False) as client,
    ):
        yield Neighbour(client)


@pytest.fixture(scope="module")
def bad(fleet: ServedFleet, folder: Path) -> Iterator[Bad]:
    made = Bad(fleet, folder)
    try:
        yield made
    finally:
        made.close()


WAYS: dict[str, Callable[[str], bool]] = {
    "segfault": lambda said: said == "KilledWorker",
    "memory": lambda said: said == "KilledWorker",
    "lock": lambda said: said == "its task is pending",
    "disk": lambda said: said.startswith("No space left"),
    "shutdown": lambda said: said == "closed",
    "graph": lambda said: said == "computed 150",
    "flood": lambda said: said.endswith(" calls"),
    "preload": lambda said: "its workers cannot start" in said or "has ended" in said,
    "preload_of_scheduler": lambda said: said.startswith("ClusterFailed"),
}
"""What the one who was poisoned has to say in the end."""


TOGETHER = (("lock", "segfault", "preload"), ("memory", "disk", "shutdown"), ("graph", "flood", "preload_of_scheduler"))


@pytest.mark.parametrize("ways", TOGETHER, ids="-".join)
def test_the_neighbour_notices_nothing(
    ways: tuple[str, ...], fleet: ServedFleet, neighbour: Neighbour, bad: Bad, record_property: Record
) -> None:
    """Scenarios 16 (``segfault``), 17 (``memory``) and 18 (``lock``), and more of their kind, three at a time."""
    verdict = Verdict()
    for way in ways:
        bad.take(way)
    deadline = time.monotonic() + PATIENCE_S
    while not all(bad.said(way, "over") for way in ways):
        assert time.monotonic() < deadline, "it never ends"
        neighbour.compute(verdict)
    neighbour.compute(verdict)
    neighbour.end(verdict)
    said = {way: bad.said(way, "over") or "" for way in ways}
    record_property("figures", f"{verdict} beside {said}")
    assert all(WAYS[way](said[way]) for way in ways), said
    assert (verdict.wrong, verdict.replaced) == (0, 0)


def test_ruined_clusters_leave_nothing(fleet: ServedFleet, neighbour: Neighbour, folder: Path) -> None:
    def only_the_neighbour() -> bool:
        clusters = fleet.request("GET", "/v1/clusters").json()["clusters"]
        return len(clusters) == 1 and fleet.status()["agents"][0]["free"] == SLOTS - 2

    fleet.until(only_the_neighbour, "the slots of all others to be free", timeout_s=60)
    left = [path for path in (folder / "small").rglob("*") if path.name != "lost+found"]
    assert left == [], "scratch folders are gone, wherever they were"
    assert len(list((fleet.data_dir / "scratch").iterdir())) == 3, "the neighbour's own: of its scheduler and two workers"


def test_the_checker_notices_one_cluster_for_all(tmp_path: Path, record_property: Record) -> None:
    """Where both use one scheduler and its workers, as elsewhere, the neighbour pays."""
    import dask

    verdict = Verdict()
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(tmp_path)
        ) as one,
        Client(one, set_as_default=False) as honest,
        Client(one, set_as_default=False) as other,
    ):
        neighbour = Neighbour(honest)
        doomed: Any = [other.submit(poisoner.segfault, str(tmp_path / "taken"), pure=False) for _ in range(2)]
        neighbour.compute(verdict)
        for future in doomed:
            with pytest.raises(KilledWorker):
                future.result(timeout=PATIENCE_S)
        honest.wait_for_workers(2, timeout=PATIENCE_S)
        neighbour.end(verdict)
    record_property("figures", str(verdict))
    assert verdict.replaced > 0
