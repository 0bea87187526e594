"""``make bench``: measure Fleet and its peers in one go and write ``docs/benchmarks.md``.

    python -m benchmarks.run [--quick] [--rounds 3] [--folder DIR] [--output FILE]

Programs of their own, which make their section of that file anew with ``--output docs/benchmarks.md``:
``benchmarks.against`` (an earlier commit), ``benchmarks.batches``, ``benchmarks.fleet_cluster``;
``benchmarks.clusters_workloads`` prints.

Systems are started afresh and measured in turn, round after round, so that a slow minute of the machine hits all alike; the
report has medians over the rounds. Everything listens on 127.0.0.1 only, and ends with this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import hostile, report
from benchmarks.generator import Figures
from benchmarks.ledger import fed, fsync_ms
from benchmarks.processes import ROOT, generate, rss_mb
from benchmarks.systems import System, celery_with_redis, dask_with_redis, fleet, fleet_system
from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.testing.served import ServedFleet


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    single: int
    """Calls with one connection."""
    fleet: int
    """Calls of Fleet with 32 connections."""
    peer: int
    """Calls of a peer with 32 connections."""
    many: int
    """Jobs after which memory is read."""
    rows: int
    """Jobs in the large ledger."""


FULL = Size(rounds=3, single=500, fleet=15_000, peer=1_500, many=100_000, rows=1_000_000)
QUICK = Size(rounds=1, single=100, fleet=2_000, peer=300, many=5_000, rows=20_000)


class Measured:
    """All samples by name; the report takes medians."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)
        print(f"  {name:48} {value:12.3f}", flush=True)

    def median(self, name: str) -> float | None:
        found = self.samples.get(name)
        return statistics.median(found) if found else None


def checked(figures: Figures) -> Figures:
    """Return the figures, or fail: a benchmark with errors measures nothing."""
    if figures.errors:
        raise RuntimeError(f"{figures.errors} of {figures.calls} calls failed, first: {figures.first_error}")
    return figures


def calls(system: System, measured: Measured, name: str, size: Size, *, many: int, dedups: bool = True) -> None:
    """Warm up, then measure fresh calls with 1 and 32 connections and, where equal ones are one job, repeated calls."""
    first = time.time_ns() // 1_000_000 * 1_000  # fresh in every round, also for a ledger or Redis that has seen others
    checked(generate(system.load(connections=32, calls=max(200, many // 10), first=first)))
    first += many
    single = checked(generate(system.load(connections=1, calls=size.single, first=first)))
    measured.add(f"{name} fresh p50 ms, 1 connection", single.p50_ms)
    measured.add(f"{name} fresh p99 ms, 1 connection", single.p99_ms)
    first += size.single
    busy = checked(generate(system.load(connections=32, calls=many, first=first)))
    measured.add(f"{name} fresh per s, 32 connections", busy.per_second)
    measured.add(f"{name} fresh p99 ms, 32 connections", busy.p99_ms)
    if dedups:
        again = checked(generate(system.load(connections=32, calls=max(many, size.fleet), first=first, repeated=True)))
        measured.add(f"{name} repeated per s, 32 connections", again.per_second)


def compare(measured: Measured, size: Size, new_folder: Callable[[str], Path]) -> None:
    """Fleet and its peers, in turn."""
    for number in range(size.rounds):
        print(f"round {number + 1} of {size.rounds}", flush=True)
        measured.add("fsync ms", fsync_ms(new_folder("fsync")))
        with fleet(new_folder("fleet")) as (system, served, ready_s):
            measured.add("fleet ready s", ready_s)
            measured.add("fleet rss idle MB", rss_mb(served.server_pid()))
            calls(system, measured, "fleet", size, many=size.fleet)
        with dask_with_redis(new_folder("dask")) as system:
            calls(system, measured, "a", size, many=size.peer)
        with celery_with_redis(new_folder("celery")) as system:
            calls(system, measured, "b", size, many=size.peer, dedups=False)
        with fleet(new_folder("flights"), service=ROOT / "examples" / "flights" / "service.py") as (_, _, ready_s):
            measured.add("flights ready s", ready_s)


def memory(measured: Measured, size: Size, folder: Path) -> None:
    """The server process before and after many jobs."""
    print(f"memory over {size.many:,} jobs", flush=True)
    with fleet(folder) as (system, served, _):
        checked(generate(system.load(connections=32, calls=size.many, first=0)))
        measured.add("fleet rss after many MB", rss_mb(served.server_pid()))


async def fill(path: Path, rows: int) -> None:
    """Make a ledger of so many ended jobs, through the ledger's own port (1 in 100 failed, 50 users, rare tags)."""
    ledger = SQLiteLedger(path)
    await ledger.open()
    try:
        await fed(ledger, rows, 512)
    finally:
        await ledger.close()


LISTINGS = {
    "all": "",
    "status": "status=failed",
    "service and endpoint": "service=flights&endpoint=delay",
    "user": "user=user-7",
    "tag": "tag=rare",
    "created_before": "created_before={middle}",
    "status, user": "status=failed&user=user-7",
    "service, status, unknown user": "service=flights&status=succeeded&user=nobody",
}


def large_ledger(measured: Measured, size: Size, new_folder: Callable[[str], Path]) -> None:
    """What a call and a listing cost with many jobs in the ledger, against an empty one beside it."""
    print(f"filling a ledger with {size.rows:,} jobs", flush=True)
    folder, begin = new_folder("large"), time.perf_counter()
    asyncio.run(fill(folder / "ledger.db", size.rows))
    print(f"  filled in {time.perf_counter() - begin:.0f} s", flush=True)
    with contextlib.ExitStack() as stack:
        servers = {
            "empty": stack.enter_context(fleet(new_folder("empty")))[1],
            "large": stack.enter_context(fleet(folder))[1],
        }
        for served in servers.values():
            checked(generate(fleet_system(served).load(connections=32, calls=500, first=0)))
        for number in range(1, max(3, size.rounds) + 1):
            for name, served in servers.items():
                system, first = fleet_system(served), number * 1_000_000
                single = checked(generate(system.load(connections=1, calls=size.single, first=first)))
                measured.add(f"{name} ledger p50 ms, 1 connection", single.p50_ms)
                busy = checked(generate(system.load(connections=32, calls=size.fleet, first=first + size.single)))
                measured.add(f"{name} ledger per s, 32 connections", busy.per_second)
        listings(measured, servers["large"])


def listings(measured: Measured, served: ServedFleet) -> None:
    """Each filter, asked by a fresh client each time."""
    with served.connect() as connection:
        oldest = connection.request("GET", "/v1/jobs?limit=1").json()["jobs"][0]["created_at"]
        for name, query in LISTINGS.items():
            path = "/v1/jobs?limit=50&" + query.format(middle=oldest)
            for _ in range(10):
                begin = time.perf_counter()
                answer = connection.request("GET", path.rstrip("&"))
                elapsed_ms = 1e3 * (time.perf_counter() - begin)
                if answer.status != 200:
                    raise RuntimeError(f"{path}: {answer.status} {answer.body[:300]!r}")
                measured.samples.setdefault(f"list {name} ms", []).append(elapsed_ms)
            print(f"  list {name:43} {max(measured.samples[f'list {name} ms']):12.3f}  (slowest of 10)", flush=True)


@contextlib.contextmanager
def folders(parent: Path | None) -> Iterator[Callable[[str], Path]]:
    """Yield what makes a fresh folder for a name; all go in the end."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fleet-bench-", dir=parent) as root:
        yield lambda name: Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute, not a quarter of an hour; writes no file")
    parser.add_argument("--rounds", type=int, help="rounds of the comparison (default 3)")
    parser.add_argument("--folder", type=Path, help="where data folders are made, on the disk to measure (default /tmp)")
    parser.add_argument("--output", type=Path, help="the report (default docs/benchmarks.md, with --quick none)")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.rounds:
        size = Size(**{**vars(size), "rounds": options.rounds})
    measured = Measured()
    with folders(options.folder) as new_folder:
        for part in (
            partial(compare, measured, size, new_folder),
            partial(memory, measured, size, new_folder("memory")),
            partial(large_ledger, measured, size, new_folder),
            partial(hostile.under_attack, measured.add, new_folder("hostile"), rounds=max(3, size.rounds)),
        ):
            part()
    text = report.render(measured.median, measured.samples, rounds=size.rounds, many=size.many, rows=size.rows)
    output = options.output or (None if options.quick else ROOT / "docs" / "benchmarks.md")
    if output is None:
        print(text)
    else:
        last = output.read_text(encoding="utf-8") if output.exists() else ""
        output.write_text(report.with_others(text, last), encoding="utf-8")
        print(f"wrote {output}")


if __name__ == "__main__":
    main()
