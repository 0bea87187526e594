"""Clusters come and go, and nothing grows; many at once take turns."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sqlite3
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, get_client, secede
from tests.promises.form import FULL, Record
from tests.users import add_users

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

CYCLES, WARM = (200, 20) if FULL else (25, 10)
SPARE_CYCLES, SPARE_WARM = (200, 20) if FULL else (12, 6)
"""With a spare for each: that takes the time in which the next one is made."""
KIB_EACH = 64.0
"""What any process may grow by with each cluster, for the allocator and the ledger's caches settle slowly (10 were seen)."""
ADA, BOB, SLOTS = (40, 10, 4) if FULL else (6, 2, 2)
"""Clusters that two users ask for at once, and the slots there are."""


def serve(folder: Path, *, slots: int, spares: int = 0) -> ServedFleet:
    args = ("--no-services", "--nworkers", str(slots), "--nthreads", "1")
    # Spare processes as there are by default. Without spare clusters each cluster is one that was asked for.
    env = {"FLEET_MAX_CLUSTERS_PER_USER": "60", "FLEET_SPARE_SCHEDULERS": "1", "FLEET_SPARE_CLUSTERS": str(spares)}
    return ServedFleet([], folder / "data", args=args, env=env)


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
    gc.collect()
    own = psutil.Process()
    seen["own descriptors"], seen["own threads"] = own.num_fds(), threading.active_count()
    seen["own KiB"] = own.memory_info().rss >> 10
    seen["clusters in memory"], seen["clients in memory"] = len(FleetCluster._instances), len(Client._instances)
    return seen


def rows(fleet: ServedFleet) -> dict[str, int]:
    """Count what the ledger holds: what lives, and what a cluster leaves as its story until that is removed by age."""
    with contextlib.closing(sqlite3.connect(f"file:{fleet.data_dir / 'ledger.db'}?mode=ro", uri=True)) as ledger:

        def count(sql: str) -> int:
            return int(ledger.execute(sql).fetchone()[0])

        return {
            "living clusters": count("SELECT count(*) FROM clusters WHERE closed_us IS NULL"),
            "leases that hold slots": count(
                "SELECT count(*) FROM slot_leases WHERE state IN ('granted', 'joined', 'leaving')"
            ),
            "clusters": count("SELECT count(*) FROM clusters"),
            "leases": count("SELECT count(*) FROM slot_leases"),
            "events": count("SELECT count(*) FROM cluster_events"),
            "jobs": count("SELECT count(*) FROM jobs"),
        }


def living(fleet: ServedFleet) -> list[dict[str, Any]]:
    clusters: list[dict[str, Any]] = fleet.request("GET", "/v1/clusters").json()["clusters"]
    return clusters


def settle(fleet: ServedFleet, processes: int) -> None:
    """Wait until all clusters have gone and the spares are back."""
    fleet.until(lambda: not living(fleet), "all clusters to have closed", timeout_s=60)
    fleet.until(lambda: len(fleet.processes()) == processes, f"{processes} processes again", timeout_s=60)


class Growth:
    """What grows with the clusters that come and go. Begun after the first of them, when what grows once has grown."""

    def __init__(self, fleet: ServedFleet) -> None:
        self._fleet = fleet
        self._before = self._least()
        self._memory: dict[str, list[int]] = {}

    def _least(self) -> dict[str, int]:
        """Return the least of some looks: a connection that is about to close is no leak, one that stays is."""
        looks = []
        for _ in range(5):
            looks.append(look(self._fleet))
            time.sleep(0.2)
        return {name: min(one[name] for one in looks) for name in looks[0]}

    def cycle(self) -> None:
        """After each cluster."""
        for name, value in look(self._fleet).items():
            if name.endswith("KiB"):
                self._memory.setdefault(name, []).append(value)

    def judge(self) -> dict[str, float]:
        """Return what has grown: counts as they are, memory by cluster."""
        deadline = time.monotonic() + 60
        while (counts := self._counts()) and time.monotonic() < deadline:
            continue
        return counts | {name: round(slope(values), 1) for name, values in self._memory.items()}

    def _counts(self) -> dict[str, float]:
        now = self._least()
        return {name: now[name] - was for name, was in self._before.items() if not name.endswith("KiB") and now[name] > was}


def slope(values: Sequence[float]) -> float:
    """Return by how much they grow from one to the next: the median of all pairs', which no single step can move."""
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(values), 2))


def assert_little(grown: dict[str, float]) -> None:
    for name, by in grown.items():
        assert by <= (KIB_EACH if name.endswith("KiB") else 0), grown


def test_a_slope_is_no_step() -> None:
    assert slope([100.0] * 7 + [5_000.0] * 3) == 0, "what grows once is no leak"
    assert slope([100.0 + 1_024 * n + (-1) ** n * 300 for n in range(15)]) > KIB_EACH, "a megabyte each is"


def nested(n: int) -> int:
    client = get_client()
    secede()  # the cluster has one thread
    return sum(client.gather(client.map(pow, [n] * 3, range(3), pure=False)))


def test_nothing_grows(tmp_path: Path, record_property: Record) -> None:
    with serve(tmp_path, slots=2) as fleet:

        def cycle() -> None:
            with cluster(fleet) as made, Client(made, set_as_default=False) as client:
                assert client.submit(nested, 2, pure=False).result(timeout=120) == 7

        # The spares come back one by one: that it is over shows when nothing is coming any more.
        cycle()
        fleet.until(lambda: not living(fleet), "the first cluster to have closed", timeout_s=60)
        processes = _steady(fleet)
        for _ in range(WARM - 1):
            cycle()
        settle(fleet, processes)
        growth, kept = Growth(fleet), rows(fleet)
        for _ in range(CYCLES - WARM):
            cycle()
            growth.cycle()
        settle(fleet, processes)
        grown, keeps = growth.judge(), rows(fleet)
    record_property("figures", f"{CYCLES} clusters; grown after the first {WARM}: {grown}; the ledger keeps {keeps}")
    assert_little(grown)
    assert (keeps["living clusters"], keeps["leases that hold slots"], keeps["jobs"]) == (0, 0, 0)
    assert (keeps["clusters"], keeps["leases"]) == (CYCLES, CYCLES)
    assert keeps["events"] / CYCLES <= kept["events"] / WARM + 1, "the last clusters leave no longer stories than the first"


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


def test_nothing_grows_with_spares(tmp_path: Path, record_property: Record) -> None:
    """Each cluster after the first is a spare that is handed out, and the next spare is made while it is used."""
    with serve(tmp_path, slots=2, spares=1) as fleet:
        adopted = 0

        def spare_is_ready() -> bool:
            found = fleet.request("GET", "/v1/clusters?spares=true").json()["clusters"]
            return [(one["kind"], one["status"], one["workers"]) for one in found] == [("spare", "running", 1)]

        def cycle() -> None:
            nonlocal adopted
            with cluster(fleet) as made, Client(made, set_as_default=False) as client:
                assert client.submit(nested, 2, pure=False).result(timeout=120) == 7
            story = fleet.request("GET", f"/v1/clusters/{made.cluster_id}/events").json()["events"]
            adopted += any(event["kind"] == "adopted" for event in story)
            fleet.until(spare_is_ready, "the next spare, and nothing else", timeout_s=60)

        for _ in range(3):
            cycle()
        processes = _steady(fleet)
        for _ in range(SPARE_WARM - 3):
            cycle()
        settle(fleet, processes)
        growth, kept = Growth(fleet), rows(fleet)
        for _ in range(SPARE_CYCLES - SPARE_WARM):
            cycle()
            growth.cycle()
        settle(fleet, processes)
        grown, keeps = growth.judge(), rows(fleet)
    spares = f"{adopted} of {SPARE_CYCLES} were spares"
    record_property("figures", f"{spares}; grown after the first {SPARE_WARM}: {grown}; the ledger keeps {keeps}")
    assert adopted == SPARE_CYCLES - 1, "all but the first, which told what to keep"
    assert_little(grown)
    # One of each is the spare's that is left.
    assert (keeps["living clusters"], keeps["leases that hold slots"], keeps["jobs"]) == (1, 1, 0)
    assert (keeps["clusters"], keeps["leases"]) == (SPARE_CYCLES + 1, SPARE_CYCLES + 1)
    assert keeps["events"] / SPARE_CYCLES <= kept["events"] / SPARE_WARM + 1


def test_many_at_once_finish_in_fair_order(tmp_path: Path, record_property: Record) -> None:
    """Ada asks for many, then Bob for a few: they take turns, and each one's come in the order of their asking."""
    tokens = add_users(tmp_path / "data", ["ada", "bob"], scopes=("read", "run_code"))
    finished: list[str] = []
    failures: list[BaseException] = []

    def use(fleet: ServedFleet, user: str, name: str) -> None:
        try:
            with (
                FleetCluster(1, 1, name=name, url=fleet.url, token=tokens[user], quiet=True) as made,
                Client(made, set_as_default=False) as client,
            ):
                assert client.submit(sum, [1, 2], pure=False).result(timeout=500) == 3
                finished.append(name)
        except BaseException as exc:  # noqa: BLE001 - told by the test's own thread
            failures.append(exc)

    threads: list[threading.Thread] = []
    with serve(tmp_path, slots=SLOTS) as fleet:
        # While the slots are taken, all are asked for, one after the other so that their order is known.
        with cluster(fleet, SLOTS) as everything:
            everything.wait_for_workers(SLOTS, timeout=120)
            asked = [f"ada-{n}" for n in range(ADA)] + [f"bob-{n}" for n in range(BOB)]
            for place, name in enumerate(asked, start=2):
                threads.append(threading.Thread(target=use, args=(fleet, name.partition("-")[0], name)))
                threads[-1].start()
                fleet.until(lambda place=place: len(living(fleet)) == place or failures, f"{name} to wait", timeout_s=60)
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive(), "a cluster never had its turn"
        assert not failures, failures[0]
        assert sorted(finished) == sorted(asked)
        fleet.until(lambda: not living(fleet), "all clusters to have closed", timeout_s=60)
        free = fleet.until(lambda: fleet.status()["agents"][0]["free"] == SLOTS, "all slots", timeout_s=60)
    assert free
    fair = [name for pair in zip(asked[:ADA], asked[ADA:], strict=False) for name in pair]
    fair += [name for name in asked if name not in fair]
    late = max(abs(fair.index(name) - place) for place, name in enumerate(finished))
    last_bob = max(finished.index(name) for name in asked[ADA:])
    figures = f"{len(asked)} clusters over {SLOTS} slots: farthest from its turn {late}, Bob's last is number {last_bob + 1}"
    record_property("figures", figures)
    assert late <= 2 * SLOTS, finished
