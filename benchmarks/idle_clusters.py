"""What clusters cost while nobody computes, in processor time of each process.

    python -m benchmarks.idle_clusters [--seconds 60] [--output docs/benchmarks.md]

On one fleet stand, side by side, a user's cluster, one in processes that are shared, and a spare. Processor time is no
matter of how busy the machine is otherwise, or hardly: so this is a figure that a test can look at, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import report
from benchmarks.fleet_cluster import spare_is_ready
from dask_fleet.testing.served import ServedFleet

AIM_PERCENT = 0.5
CALM_S = 5.0
"""Between the last thing that happened and the measurement: connections settle, rehearsals end."""
HEADING = "## Dask clusters: idle"
SCHEDULER, MEMBER, SHARED = "a scheduler", "a membership, with its fresh process", "a membership, with its shared process"
SPARE_SCHEDULER, SPARE_MEMBER, SPARE = "the scheduler of a spare", "a worker of a spare", "a whole spare: three processes"


class Members(NamedTuple):
    """The processes of one cluster."""

    scheduler: int
    workers: list[int]


def members(cluster: Any) -> Members:
    """Ask a cluster for its processes."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        return Members(client.run_on_scheduler(os.getpid), list(client.run(os.getpid).values()))


def costs(fleet: ServedFleet, seconds: float) -> dict[int, float]:
    """Return what each process of a fleet uses from now on, in percent of a core."""

    def used() -> dict[int, float]:
        found = {}
        for each in fleet.processes():
            try:
                found[each.pid] = sum(psutil.Process(each.pid).cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        return found

    before, begun = used(), time.monotonic()
    time.sleep(seconds)
    after, took = used(), time.monotonic() - begun
    return {pid: 100 * (after[pid] - before[pid]) / took for pid in before if pid in after}


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Return percent of a core by what costs it."""
    from dask_fleet import FleetCluster

    with ServedFleet([], folder, args=("--no-services", "--nworkers", "8", "--nthreads", "1")) as fleet:

        def take(**more: Any) -> Any:
            return FleetCluster(n_workers=2, url=fleet.url, token=fleet.token, quiet=True, idle_timeout=None, **more)

        def has_a_spare() -> bool:
            return spare_is_ready(fleet)

        with take(shared=True) as shared:
            shared_by = members(shared)
            with take() as own:
                owned_by = members(own)
                fleet.until(has_a_spare, "a spare cluster", timeout_s=60)
                time.sleep(CALM_S)
                found = costs(fleet, seconds)
            with take() as spare:  # what was a spare all the while tells now which processes it has
                events = fleet.request("GET", f"/v1/clusters/{spare.cluster_id}/events").json()["events"]
                assert any(event["kind"] == "adopted" for event in events), "it was no spare"
                spare_has = members(spare)
    in_spare = [found[pid] for pid in spare_has.workers]
    return {
        SCHEDULER: found[owned_by.scheduler],
        MEMBER: statistics.mean(found[pid] for pid in owned_by.workers),
        SHARED: statistics.mean(found[pid] for pid in shared_by.workers),
        SPARE_SCHEDULER: found[spare_has.scheduler],
        SPARE_MEMBER: statistics.mean(in_spare),
        SPARE: found[spare_has.scheduler] + sum(in_spare),
    }


def table(found: dict[str, float], seconds: float) -> list[str]:
    """Return the figures as lines of Markdown."""
    lines = [
        f"Processor time of each process, over {seconds:.0f} s in which nothing is computed; clusters of two workers stand",
        "side by side. Of Dask's own housekeeping, only that is off or slower what",
        "[differs from a LocalCluster](how-to/use-dask-clusters.md#what-differs-from-a-localcluster).",
        "",
        "| | % of a core | aim | |",
        "|---|---:|---:|---|",
    ]
    for what, percent in found.items():
        aimed = what != SPARE
        verdict = ("met" if percent <= AIM_PERCENT else "**open**") if aimed else ""
        lines.append(f"| {what} | {percent:.2f} | {f'≤ {AIM_PERCENT}' if aimed else ''} | {verdict} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, help="the report whose section on this is to be made anew")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = table(measure(Path(folder), given.seconds), given.seconds)
    report.publish(HEADING, lines, given.output)


if __name__ == "__main__":
    main()
