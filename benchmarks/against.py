"""This tree beside an earlier one: what a change costs, as ratios of one run.

    python -m benchmarks.against COMMIT [--rounds 7] [--output docs/benchmarks.md]

Both are served all the time, on data folders of their own, and loaded in turn, the first one changing each round, so that a
slow minute of the machine hits both. Printed: the medians of each, and the median, smallest and largest of the rounds'
ratios (this tree by COMMIT). It runs the earlier tree with the packages that are installed here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.generator import Figures
from benchmarks.processes import ROOT, Processes, answers, free_port, generate
from benchmarks.run import checked, folders
from benchmarks.systems import System

HEADING = "## Beside an earlier commit"
AIM = 0.95
"""Calls a second by those of before."""
_SERVE = "from dask_fleet.cli.main import main; main()"


class Measure(NamedTuple):
    """One kind of load."""

    connections: int
    calls: int
    repeated: bool = False

    def figure(self, figures: Figures) -> float:
        """Calls a second; with one connection by the median, which a hiccup of the machine leaves alone."""
        return 1e3 / figures.p50_ms if self.connections == 1 else figures.per_second


MEASURES = {
    "fresh calls per s, 32 connections": Measure(32, 10_000),
    "fresh calls per s, 1 connection (of the median)": Measure(1, 1_000),
    "repeated calls per s, 32 connections": Measure(32, 20_000, repeated=True),
}


def unpack(commit: str, folder: Path) -> Path:
    """Return the tree of a commit, laid out in `folder`."""
    packed = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


@contextlib.contextmanager
def served(source: Path, folder: Path) -> Iterator[System]:
    """Serve the trivial function with the house of `source`."""
    port = free_port()
    url, data = f"http://127.0.0.1:{port}", folder / "data"
    with Processes(folder) as processes:
        processes.python(
            "serve", "-P", "-c", _SERVE, "serve", str(ROOT / "benchmarks" / "service.py"), "--port", str(port),
            "--data-dir", str(data), "--nworkers", "2", "--log-level", "warning",
            env={"PYTHONPATH": str(source)},
        )  # fmt: skip
        processes.until(lambda: answers(f"{url}/readyz"), "the server")
        token = (data / "token").read_text(encoding="ascii").strip()
        yield System(url, "/v1/bench/add_one", "wait", {"Authorization": f"Bearer {token}", "Prefer": "wait=10"})


def table(commit: str, figures: dict[str, list[tuple[float, float]]], *, load_before: float) -> list[str]:
    """Return what was measured as lines of Markdown."""
    rounds = len(next(iter(figures.values())))
    rows = [
        f"This tree and commit {commit}, both served at once and loaded in turn; {rounds} rounds. Aim: at most 5 % fewer",
        f"calls. Load average of the machine before: {load_before:.1f}, of {os.cpu_count()} cores.",
        "",
        "| | before | now | median of the rounds' ratios | smallest | largest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, pairs in figures.items():
        before, now = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratios = [new / old for old, new in pairs]
        median = statistics.median(ratios)
        met = "" if median >= AIM else " (**open**)"
        rows.append(f"| {name} | {before:,.0f} | {now:,.0f} | {median:.2f}{met} | {min(ratios):.2f} | {max(ratios):.2f} |")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="what to compare with, as git names it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="the report whose section on this is to be made anew")
    given = parser.parse_args()
    named = subprocess.run(
        ["git", "rev-parse", "--short", f"{given.commit}^{{commit}}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    commit, load_before = named.stdout.strip(), os.getloadavg()[0]
    figures: dict[str, list[tuple[float, float]]] = {}
    with folders(None) as new_folder, contextlib.ExitStack() as stack:
        old = stack.enter_context(served(unpack(commit, new_folder("tree")), new_folder("before")))
        new = stack.enter_context(served(ROOT / "src", new_folder("now")))
        first = 1
        for system in (old, new):
            checked(generate(system.load(connections=32, calls=5_000, first=10**9)))
        for number in range(given.rounds):
            for name, measure in MEASURES.items():
                in_turn = (old, new) if number % 2 == 0 else (new, old)
                found = {
                    id(system): measure.figure(checked(generate(system.load(
                        connections=measure.connections, calls=measure.calls, first=first, repeated=measure.repeated
                    ))))
                    for system in in_turn
                }  # fmt: skip
                pair = found[id(old)], found[id(new)]
                figures.setdefault(name, []).append(pair)
                print(f"  round {number + 1} of {given.rounds}: {name:48} {pair[0]:8,.0f} {pair[1]:8,.0f}", flush=True)
                first += measure.calls
    lines = table(commit, figures, load_before=load_before)
    report.publish(HEADING, lines, given.output)


if __name__ == "__main__":
    main()
