"""Clusters come and go, and nothing grows; many at once take turns."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, get_client
from tests.promises.form import FULL, Record

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

CYCLES, WARM = (200, 20) if FULL else (15, 5)
AT_ONCE, SLOTS = (50, 4) if FULL else (8, 2)


def serve(folder: Path, *, slots: int) -> ServedFleet:
    args = ("--no-services", "--nworkers", str(slots), "--nthreads", "1")
    return ServedFleet([], folder / "data", args=args, env={"FLEET_MAX_CLUSTERS_PER_USER": "60"})


def cluster(fleet: ServedFleet, n_workers: int = 1, **options: Any) -> FleetCluster:
    return FleetCluster(n_workers, 1, url=fleet.url, token=fleet.token, quiet=True, **options)


def look(fleet: ServedFleet) -> dict[str, int]:
    """Count what the server and the agent hold, and how many processes there are."""
    seen = {"processes": len(fleet.processes())}
    for role, pid in (("server", fleet.server_pid()), ("agent", fleet.agent_pid()), ("forkserver", fleet.forkserver_pid())):
        process = psutil.Process(pid)
        seen[f"{role} descriptors"] = process.num_fds()
        seen[f"{role} threads"] = process.num_threads()
        seen[f"{role} KiB"] = process.memory_info().rss >> 10
    seen["folders"] = len(list((fleet.data_dir / "scratch").glob("*")))
    seen["own descriptors"], seen["own threads"] = psutil.Process().num_fds(), threading.active_count()
    return seen


def living(fleet: ServedFleet) -> list[dict[str, Any]]:
    clusters: list[dict[str, Any]] = fleet.request("GET", "/v1/clusters").json()["clusters"]
    return clusters


def settle(fleet: ServedFleet, processes: int) -> dict[str, int]:
    """Wait until all clusters have gone and the spares are back."""
    fleet.until(lambda: not living(fleet), "all clusters to have closed", timeout_s=60)
    fleet.until(lambda: len(fleet.processes()) == processes, f"{processes} processes again", timeout_s=60)
    return look(fleet)


def nested(n: int) -> int:
    return sum(get_client().map(pow, [n] * 3, range(3), pure=False)[k].result() for k in range(3))


def test_nothing_grows(tmp_path: Path, record_property: Record) -> None:
    with serve(tmp_path, slots=2) as fleet:

        def cycle() -> None:
            with cluster(fleet, 2) as made, Client(made, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=120)
                assert client.submit(nested, 2, pure=False).result(timeout=120) == 7

        # The spares come back one by one: that it is over shows when nothing is coming any more.
        cycle()
        fleet.until(lambda: not living(fleet), "the first cluster to have closed", timeout_s=60)
        processes = _steady(fleet)
        for _ in range(WARM - 1):
            cycle()
        before = settle(fleet, processes)
        for _ in range(CYCLES - WARM):
            cycle()
        after = settle(fleet, processes)
    grown = {name: after[name] - before[name] for name in before if after[name] != before[name]}
    record_property("figures", f"{CYCLES} clusters; grown after the first {WARM}: {grown}")
    for name, by in grown.items():
        # What the allocator and the ledger's caches have not settled yet is far less than a cluster's worth each.
        assert by <= (16 << 10 if name.endswith("KiB") else 3 if "descriptors" in name or "threads" in name else 0), grown


def _steady(fleet: ServedFleet) -> int:
    """Return the number of processes once it has not changed for two seconds."""
    last, since = len(fleet.processes()), time.monotonic()
    deadline = since + 90
    while time.monotonic() - since < 2:
        now = len(fleet.processes())
        if now != last:
            last, since = now, time.monotonic()
        assert time.monotonic() < deadline, "processes come and go"
        time.sleep(0.1)
    return last


def test_many_at_once_finish_in_fair_order(tmp_path: Path, record_property: Record) -> None:
    finished: list[int] = []
    failures: list[BaseException] = []
    with serve(tmp_path, slots=SLOTS) as fleet:
        asked: list[FleetCluster | None] = [None] * AT_ONCE

        def use(number: int) -> None:
            try:
                made = asked[number]
                assert made is not None
                with made, Client(made, set_as_default=False) as client:
                    assert client.submit(pow, 2, number, pure=False).result(timeout=500) == 2**number
                    finished.append(number)
            except BaseException as exc:  # noqa: BLE001 - told by the test's own thread
                failures.append(exc)

        threads = []
        for number in range(AT_ONCE):  # in this order, so that it can be compared
            document = {"name": f"c{number}", "n_workers": 2}
            answer = fleet.request("POST", "/v1/clusters", document)
            assert answer.status in {201, 202}, answer.body
        for number in range(AT_ONCE):
            asked[number] = None
            thread = threading.Thread(target=_join, args=(fleet, number, asked, use))
            threads.append(thread)
            thread.start()
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive(), "a cluster never had its turn"
        assert not failures, failures[0]
        assert sorted(finished) == list(range(AT_ONCE))
        fleet.until(lambda: not living(fleet), "all clusters to have closed", timeout_s=60)
    late = max(abs(place - number) for place, number in enumerate(finished))
    record_property("figures", f"{AT_ONCE} clusters over {SLOTS} slots: farthest from its turn {late}")
    assert late <= 2 * SLOTS, finished


def _join(fleet: ServedFleet, number: int, asked: list[FleetCluster | None], use: Any) -> None:
    asked[number] = FleetCluster.from_name(
        f"c{number}", url=fleet.url, token=fleet.token, quiet=True, shutdown_on_close=True
    )
    use(number)
