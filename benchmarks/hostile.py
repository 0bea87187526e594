"""What an honest client notices of an attack: its calls' times alone, and beside attacks of several kinds.

    python -m benchmarks.hostile [--rounds 3] [--output docs/benchmarks.md]

Attackers and honest client are those of the promise tests (`tests/promises`), processes of their own on the same cores. An
attack is polite if it takes only processor time that neither the server nor the client wants (`SCHED_IDLE`): what the
client then waits for longer is the server's doing. Else attackers compete with both for the cores. The attacks: broken
HTTP, JSON, headers, ids, methods and tokens, paced and without limit; a thousand sockets that are opened, trickle, and hang
up; a hundred bodies without end. The honest client asks, on one connection, for a result that is there.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.promises.attackers import Attackers
from tests.promises.honest import Call, Honest, Target, prefer, quantile_ms

from benchmarks import report
from benchmarks.processes import ROOT
from dask_fleet.testing.served import ServedFleet

WINDOW_S = 6.0
PACED_PER_S = 400.0
CONNECTIONS = 4
KINDS = {"silent": 300, "head": 300, "body": 350, "reader": 50}
OVERSIZED = 100
SALVOS = 8
SIEGES = 3
"""Times that the slow sockets are opened in a round, all at once."""
_SOCKETS = 8_192


def under_attack(add: Callable[[str, float], None], folder: Path, *, rounds: int, window_s: float = WINDOW_S) -> None:
    """Measure all of them, in turn, `rounds` times."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_SOCKETS, hard)), hard))
    add("hostile load average", os.getloadavg()[0])
    service = ROOT / "tests" / "promises" / "service_tiny.py"
    with ServedFleet([service], folder, args=("--nworkers", "2"), env={"TINY_STARTS": str(folder / "starts")}) as fleet:
        target = Target(fleet.url, fleet.token, fleet.server_pid())
        large = fleet.post("tiny/blob", {"mib": 32}, wait=30).json()["links"]["result"]
        with Honest(target):  # the first calls start processes and fill caches
            time.sleep(2.0)
        for one in range(rounds):
            for polite in (True, False):
                _round(add, target, large, window_s, polite=polite, first=1_000 * (2 * one + polite + 1))


def _round(
    add: Callable[[str, float], None], target: Target, large: str, window_s: float, *, polite: bool, first: int
) -> None:
    phases: list[tuple[str, float, float]] = []
    rates: dict[str, tuple[float, float]] = {}
    honest = Honest(target, first=first)
    with honest, Attackers(target, polite=polite, large_result=large) as attackers:

        def alone() -> None:
            begin = time.monotonic()
            time.sleep(window_s / 2)
            phases.append(("alone", begin, time.monotonic()))

        def attack(name: str, what: str, **how: object) -> None:
            cpu_s = _cpu_s(target.pid)
            done = attackers.do(what, **how)
            phases.append((name, done["begin"], done["end"]))
            if what == "volleys":
                broken = sum(times for status, times in done["statuses"] if status >= 500)
                if broken:
                    raise RuntimeError(f"{broken} of {done['sent']} hostile requests were answered with 500 or above")
                seconds = done["end"] - done["begin"]
                rates[name] = done["sent"] / seconds, (_cpu_s(target.pid) - cpu_s) / seconds

        if polite:
            prefer(target.pid, honest.pid)
        attackers.do("make")
        alone()
        for name, per_s in (("paced", PACED_PER_S), ("unlimited", 0.0)):
            attack(name, "volleys", requests=1 << 60, seconds=window_s, per_s=per_s, at_once=CONNECTIONS)
        for _ in range(SIEGES):
            attack("opening", "open", kinds=KINDS, deadline_s=90)
            attack("trickling", "rest", seconds=window_s / 2)
            attack("hanging up", "drop")
        for _ in range(SALVOS):
            attack("bodies", "oversized", count=OVERSIZED)
        time.sleep(2.5)  # the last of them are given two seconds to leave
        alone()
    if honest.failed:
        raise RuntimeError(f"the honest client: {honest.failed[:3]}")
    calls: dict[str, list[Call]] = {}
    for name, begin, end in phases:
        calls.setdefault(name, []).extend(honest.between(begin, end))
    manner = "polite" if polite else "free"
    base_ms = quantile_ms([call.seconds for call in calls["alone"]], 0.99)
    for name, found in calls.items():
        if not found:
            continue
        seconds = [call.seconds for call in found]
        add(f"hostile {manner} {name} p50 ms", quantile_ms(seconds, 0.5))
        add(f"hostile {manner} {name} p99 ms", quantile_ms(seconds, 0.99))
        add(f"hostile {manner} {name} p99 ratio", quantile_ms(seconds, 0.99) / base_ms)
        if name in rates:
            add(f"hostile {manner} {name} per s", rates[name][0])
            add(f"hostile {manner} {name} server cpu", rates[name][1])


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the report whose section on this is to be made anew")
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}

    def show(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"  {name:40} {value:10.3f}", flush=True)

    with tempfile.TemporaryDirectory(prefix="fleet-hostile-") as folder:
        under_attack(show, Path(folder), rounds=options.rounds)
    lines = report.hostile(lambda name: statistics.median(samples[name]) if name in samples else None)
    report.publish(report.HOSTILE, lines, options.output)


if __name__ == "__main__":
    main()
