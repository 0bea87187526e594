"""Processes that die or stop, functions that never end, results that cannot be stored: each hurts its own job at most."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import psutil
import pytest
from tests.promises import service_survival
from tests.promises.form import FULL, Record
from tests.promises.survivors import Survivors, ended, living

from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

KILLS = 50 if FULL else 2
"""Of each kind of process."""
FLEETS = 2 if FULL else 1
"""Side by side, for one fleet has one agent to be killed."""
AT_ONCE = 4 if FULL else 2
"""Jobs under way at each kill; where it is workers that are killed, each loses its own."""
STOPS, STOPPED_AT_ONCE = (200, 8) if FULL else (4, 2)
ROUNDS, OF_EACH = (5, 2) if FULL else (1, 1)
"""Of functions that never end: so many of each of six kinds at once, so often."""
SEED = 20261121
ORPHAN_S = 10.0
DEATH_S = 1.0 if FULL else 5.0
"""From a death until it is known, and until the function runs in a process in place of the dead one. The short form has
other tests beside it, and shows the figures."""
SLOT_BACK_S = 15.0
"""After the time-out: ten seconds to listen, then the process is killed."""
ENDLESS = [
    ("deaf", "loop"),
    ("deaf", "sleep"),
    ("deaf", "regular expression"),
    ("deaf", "C"),
    ("deaf", "C, with the lock"),
    ("endless", "event loop"),
]


class Delays:
    """How long after a death it was known, and the function ran in a process in place of the dead one."""

    def __init__(self) -> None:
        self.seen_s: dict[str, list[float]] = {}
        self.replaced_s: dict[str, list[float]] = {}

    def note(self, held: Survivors, kind: str, numbers: Iterable[int], ids: Iterable[str], since: float) -> None:
        """To be asked while the second attempts run; `since` is when their first processes were killed, or stopped."""
        for n, job_id in zip(numbers, ids, strict=True):
            first = held.fleet.request("GET", f"/v1/jobs/{job_id}/attempts").json()["attempts"][0]
            seen = _seconds(first["finished_at"])
            died = seen if kind == "stop" else since  # what is stopped dies when it was seen to be
            self.seen_s.setdefault(kind, []).append(seen - since)
            self.replaced_s.setdefault(kind, []).append(held.last_start(n) - died)

    def told(self) -> str:
        """Return median, 95 % and longest, in seconds."""
        words = []
        for kind in sorted(self.seen_s):
            for what, found in (("seen", self.seen_s[kind]), ("replaced", self.replaced_s[kind])):
                ordered = sorted(found)
                figures = (statistics.median(ordered), _most(ordered), ordered[-1])
                words.append(f"{kind} {what} after {' / '.join(f'{figure:.2f}' for figure in figures)} s")
        return ", ".join(words)

    def check(self) -> None:
        """In the short form the median: there may be five deaths, on a machine with other things to do."""
        for found in (*self.seen_s.values(), *self.replaced_s.values()):
            assert (_most(sorted(found)) if FULL else statistics.median(found)) <= DEATH_S, self.told()


def _most(ordered: Sequence[float]) -> float:
    return ordered[int(0.95 * len(ordered))]


def test_a_killed_process_costs_no_job_and_leaves_no_orphan(survivors: Any, record_property: Record) -> None:
    """`kill -9` of workers, of the forkserver, of the agent, under jobs each time."""
    kinds = [
        *["worker"] * (KILLS // FLEETS // AT_ONCE + bool(KILLS // FLEETS % AT_ONCE)),
        *["forkserver"] * (KILLS // FLEETS),
        *["agent"] * (KILLS // FLEETS),
    ]
    random.Random(SEED).shuffle(kinds)
    delays = Delays()
    fleets = [survivors(f"fleet{number}", args=("--nworkers", str(AT_ONCE))) for number in range(FLEETS)]
    with ThreadPoolExecutor(FLEETS) as threads:
        found = list(threads.map(lambda held: _kill_all(held, kinds, delays), fleets))
    killed = {kind: sum(counts[kind] for counts, _ in found) for kind in ("worker", "forkserver", "agent")}
    slowest = {kind: max(seconds[kind] for _, seconds in found) for kind in killed}
    told = {kind: f"{seconds:.2f} s" for kind, seconds in slowest.items()}
    record_property(
        "figures",
        f"{killed} killed, 0 jobs lost, 0 orphans; the family was gone after at most {told}; {delays.told()}",
    )
    delays.check()
    assert min(killed.values()) >= KILLS
    assert max(slowest.values()) < ORPHAN_S


def _kill_all(held: Survivors, kinds: list[str], delays: Delays) -> tuple[dict[str, int], dict[str, float]]:
    """Kill what these words say, one after the other; returns how many processes, and how long their families lived."""
    fleet = held.fleet
    counts, slowest = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    with fleet:
        for round_, kind in enumerate(kinds):
            numbers = range(round_ * AT_ONCE, (round_ + 1) * AT_ONCE)
            ids = held.start(*numbers)
            agent, forkserver = fleet.agent_pid(), fleet.forkserver_pid()
            assert agent is not None
            assert forkserver is not None
            workers = [held.starts(n)[-1] for n in numbers]
            assert len(set(workers)) == AT_ONCE
            victims = {"worker": workers, "forkserver": [forkserver], "agent": [agent]}[kind]
            family = {*victims, *workers, *([forkserver] if kind == "agent" else [])}
            killed, died = time.monotonic(), time.time()
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            fleet.until(lambda gone=family: not living(fleet) & gone, f"the end of the {kind}'s family", timeout_s=30)
            slowest[kind] = max(slowest[kind], time.monotonic() - killed)
            counts[kind] += len(victims)
            held.until_started(numbers, 2)
            if kind != "agent":  # whose death is told of by the one in its place
                delays.note(held, kind, numbers, ids, died)
            held.end(numbers, ids, attempt=2)
        fleet.terminate()
        fleet.until(lambda: not fleet.processes(), "everything to end")
    return counts, slowest


def test_a_stopped_worker_is_replaced_and_never_heard_again(survivors: Any, record_property: Record) -> None:
    held = survivors(args=("--nworkers", str(STOPPED_AT_ONCE)))
    fleet: ServedFleet = held.fleet
    continued, delays = 0, Delays()
    with fleet:
        for first in range(0, STOPS, STOPPED_AT_ONCE):
            numbers = range(first, first + STOPPED_AT_ONCE)
            ids = held.start(*numbers)
            zombies = [psutil.Process(held.starts(n)[-1]) for n in numbers]
            stopped = time.time()
            for zombie in zombies:
                zombie.suspend()
            held.until_started(numbers, 2)
            delays.note(held, "stop", numbers, ids, stopped)
            for zombie in zombies:
                with suppress(psutil.NoSuchProcess):
                    zombie.resume()
                    continued += 1
            held.end(numbers, ids, attempt=2)
            for job_id in ids:
                attempts = fleet.request("GET", f"/v1/jobs/{job_id}/attempts").json()["attempts"]
                assert [(one["status"], (one["error"] or {}).get("cause")) for one in attempts] == [
                    ("lost", "stopped"), ("succeeded", None),
                ]  # fmt: skip
            assert not {zombie.pid for zombie in zombies} & living(fleet)
    told = f"{STOPS} second attempts won; {continued} zombies were there to be continued"
    record_property("figures", f"{STOPS} stops: {told}; {delays.told()}")
    delays.check()


def test_what_never_ends_gives_its_slot_back(survivors: Any, record_property: Record) -> None:
    endless = ENDLESS * OF_EACH
    held = survivors(args=("--nworkers", str(len(endless))))
    fleet: ServedFleet = held.fleet
    longest = 0.0
    with fleet:
        for round_ in range(ROUNDS):
            jobs = [
                fleet.post(f"survival/{endpoint}", {"how": how, "n": round_ * OF_EACH + n // len(ENDLESS)}).json()["job_id"]
                for n, (endpoint, how) in enumerate(endless)
            ]
            assert len(set(jobs)) == len(jobs)
            for (_, how), job_id in zip(endless, jobs, strict=True):
                job = ended(fleet, job_id)
                assert (job["status"], job["error"]["cause"], job["attempt"]) == ("failed", "timeout", 1), (how, job)
                took = _seconds(job["finished_at"]) - _seconds(job["started_at"])
                longest = max(longest, took - 1)
            fleet.until(lambda: fleet.status()["agents"][0]["free"] == len(endless), "all slots to be back", timeout_s=30)
        held.end([10_000], held.start(10_000), attempt=1)
    told = f"slots were back {longest:.1f} s after their time at most"
    record_property("figures", f"{ROUNDS * len(endless)} never ended; {told}")
    assert longest < SLOT_BACK_S


def test_results_that_cannot_be_stored_cost_the_server_nothing(survivors: Any, record_property: Record) -> None:
    held = survivors(args=("--nworkers", "1", "--memory-limit", "4GiB"))
    fleet: ServedFleet = held.fleet
    causes: dict[str, str] = {}
    with fleet:
        held.end([0], held.start(0), attempt=1)
        server = psutil.Process(fleet.server_pid())
        before = most = server.memory_info().rss
        for kind in service_survival.RESULTS:
            answer = fleet.post("survival/hostile", {"kind": kind})
            job = ended(fleet, answer.json()["job_id"])
            most = max(most, server.memory_info().rss)
            causes[kind] = (job["error"] or {}).get("cause") or job["status"]
            assert len((job["error"] or {}).get("message") or "") < 10_000, kind
            assert job["attempt"] == 1, (kind, job)
        raw = fleet.request("GET", f"/v1/jobs/{job['job_id']}/result").body
        held.end([1], held.start(1), attempt=1)
        assert "Traceback" not in fleet.logs()
    grown = (most - before) >> 20
    record_property("figures", f"{len(causes)} results; server's memory +{grown} MB; {causes}")
    assert raw == b'[{"$float":"NaN"},{"$float":"Infinity"},{"$float":"-Infinity"}]'
    told = {"not a number": "succeeded", "loud exception": "exception"}
    told |= {"liar": "exception", "liar in a list": "exception"}  # what its own code raised when asked for a graph
    told |= {kind: "result_too_large" for kind in causes if kind.startswith("too large")}
    assert causes == {kind: told.get(kind, "result_not_serializable") for kind in causes}
    assert grown < 50


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
