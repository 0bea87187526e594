"""Ten thousand parameter sets in one request, until all of them are durable.

    python -m benchmarks.batches [--rounds 5] [--output docs/benchmarks.md]

As lines (NDJSON), as a JSON array, and by `Client.map`, in turn; every set is a new one. The time ends with the answer,
which comes after the last commit. The jobs have ended before the next batch is sent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.run import folders
from benchmarks.systems import fleet
from dask_fleet import Client
from dask_fleet.testing.served import ServedFleet

HEADING = "## Ten thousand calls in one request"
SETS = 10_000
AIM_S = 2.0
ENDED_S = 300.0


class Sender:
    """Sends sets that nobody has sent before."""

    def __init__(self, served: ServedFleet) -> None:
        self._served = served
        self._first = 0

    def _next(self) -> range:
        self._first += SETS
        return range(self._first, self._first + SETS)

    def lines(self) -> float:
        return self._post("application/x-ndjson", b"\n".join(b'{"n":%d}' % n for n in self._next()))

    def array(self) -> float:
        return self._post("application/json", msgspec.json.encode([{"n": n} for n in self._next()]))

    def by_map(self) -> float:
        sets = self._next()
        with Client(self._served.url, self._served.token) as client:
            begin = time.perf_counter()
            jobs = client.map("bench.add_one", [{"n": n} for n in sets])
            took_s = time.perf_counter() - begin
        if len(jobs) != SETS:
            raise RuntimeError(f"{len(jobs)} jobs of {SETS} sets")
        return took_s

    def _post(self, media_type: str, body: bytes) -> float:
        with self._served.connect(timeout_s=60) as connection:
            begin = time.perf_counter()
            answer = connection.request("POST", "/v1/bench/add_one:batch", body, headers={"Content-Type": media_type})
            took_s = time.perf_counter() - begin
        document = answer.json()
        if answer.status >= 300 or len(document["items"]) != SETS:
            raise RuntimeError(f"{answer.status} {str(document)[:300]}")
        return took_s


def is_idle(served: ServedFleet) -> bool:
    """Whether every job has ended."""
    return not any(
        served.request("GET", f"/v1/jobs?status={status}&limit=1").json()["jobs"] for status in ("queued", "running")
    )


def table(figures: dict[str, list[float]], *, load_before: float) -> list[str]:
    """Return medians, and how they stand to the aim, as lines of Markdown."""
    rounds = len(next(iter(figures.values())))
    rows = [
        f"Until {SETS:,} new parameter sets are durable, while two workers run them; {rounds} rounds",
        f"in turn. Load average of the machine before: {load_before:.1f}, of {os.cpu_count()} cores.",
        "",
        "| | median s | best | worst | aim |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, took_s in figures.items():
        median_s = statistics.median(took_s)
        met = "" if median_s <= AIM_S else " (**open**)"
        rows.append(f"| {name} | {median_s:.2f} | {min(took_s):.2f} | {max(took_s):.2f} | ≤ {AIM_S:g}{met} |")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="the report whose section on this is to be made anew")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    figures: dict[str, list[float]] = {}
    with folders(None) as new_folder, fleet(new_folder("fleet")) as (_, served, _):
        sender = Sender(served)
        ways: dict[str, Callable[[], float]] = {
            "lines (NDJSON)": sender.lines, "a JSON array": sender.array, "`client.map`": sender.by_map,
        }  # fmt: skip
        for number in range(given.rounds):
            for name, send in ways.items():
                took_s = send()
                figures.setdefault(name, []).append(took_s)
                print(f"  round {number + 1} of {given.rounds}: {name:16} {took_s:.2f} s", flush=True)
                served.until(lambda: is_idle(served), "the jobs to end", timeout_s=ENDED_S)
    lines = table(figures, load_before=load_before)
    report.publish(HEADING, lines, given.output)


if __name__ == "__main__":
    main()
