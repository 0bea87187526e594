"""Processes that die or stop, functions that never end, results that cannot be stored: each hurts its own job at most."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.promises import service_survival
from tests.promises.form import FULL, Record, Serve
from tests.users import add_users

from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

KILLS = 50 if FULL else 2
"""Of each kind of process."""
STOPS = 200 if FULL else 4
ROUNDS = 9 if FULL else 1
"""Of functions that never end, each of six kinds."""
SEED = 20261121
ORPHAN_S = 10.0
SLOT_BACK_S = 15.0
"""After the time-out: ten seconds to listen, then the process is killed."""
HERE = Path(__file__).parent
ENDLESS = [
    ("deaf", "loop"),
    ("deaf", "sleep"),
    ("deaf", "regular expression"),
    ("deaf", "C"),
    ("deaf", "C, with the lock"),
    ("endless", "event loop"),
]


USERS = 32
"""So many take turns that none of them has ten processes killed in a minute and is paused: that is another promise."""


class Survivors:
    """A fleet whose jobs outlast processes, and the folder in which they note their starts."""

    def __init__(self, fleet: ServedFleet, folder: Path) -> None:
        self.fleet = fleet
        self._folder = folder
        self._tokens = list(add_users(fleet.data_dir, (f"user{number}" for number in range(USERS))).values())

    def start(self, n: int) -> str:
        job_id: str = self.fleet.post("survival/gated", {"n": n}, token=self._tokens[n % USERS]).json()["job_id"]
        self.fleet.until(lambda: self.starts(n), f"job {n} to start", timeout_s=60)
        return job_id

    def starts(self, n: int) -> list[int]:
        path = self._folder / f"{n}.starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def ended(self, job_id: str, n: int) -> dict[str, Any]:
        (self._folder / f"{n}.gate").touch()
        return ended(self.fleet, job_id)


def ended(fleet: ServedFleet, job_id: str, *, timeout_s: float = 90.0) -> dict[str, Any]:
    found: dict[str, Any] = fleet.until(
        lambda: (job := fleet.job(job_id, wait=2))["finished_at"] and job, "the job to end", timeout_s=timeout_s
    )
    return found


@pytest.fixture
def survivors(serve: Serve, tmp_path: Path) -> Any:
    folder = tmp_path / "noted"
    folder.mkdir()

    def make(**options: Any) -> Survivors:
        return Survivors(serve(service=HERE / "service_survival.py", env={"SURVIVAL": str(folder)}, **options), folder)

    return make


def test_a_killed_process_costs_no_job_and_leaves_no_orphan(survivors: Any, record_property: Record) -> None:
    """`kill -9` of a worker, of the forkserver, of the agent, under a job each time."""
    held = survivors(args=("--nworkers", "1"))
    fleet: ServedFleet = held.fleet
    slowest = dict.fromkeys(("worker", "forkserver", "agent"), 0.0)
    kinds = [kind for kind in slowest for _ in range(KILLS)]
    random.Random(SEED).shuffle(kinds)
    with fleet:
        for n, kind in enumerate(kinds):
            job_id = held.start(n)
            agent, forkserver, worker = fleet.agent_pid(), fleet.forkserver_pid(), held.starts(n)[-1]
            assert agent is not None
            assert forkserver is not None
            family = {"worker": [worker], "forkserver": [forkserver, worker], "agent": [agent, forkserver, worker]}[kind]
            killed = time.monotonic()
            os.kill(family[0], signal.SIGKILL)
            fleet.until(lambda gone=family: not _alive(fleet, gone), f"the end of the {kind}'s family", timeout_s=30)
            slowest[kind] = max(slowest[kind], time.monotonic() - killed)
            fleet.until(lambda n=n: len(held.starts(n)) == 2, "the second start", timeout_s=60)
            job = held.ended(job_id, n)
            assert (job["status"], job["result"], job["attempt"]) == ("succeeded", 3 * n, 2), (kind, job)
        fleet.terminate()
        fleet.until(lambda: not fleet.processes(), "everything to end")
    told = {kind: f"{seconds:.2f} s" for kind, seconds in slowest.items()}
    record_property("figures", f"{len(kinds)} kills, 0 jobs lost, 0 orphans; the family was gone after at most {told}")
    assert max(slowest.values()) < ORPHAN_S


def test_a_stopped_worker_is_replaced_and_never_heard_again(survivors: Any, record_property: Record) -> None:
    held = survivors(args=("--nworkers", "1"))
    fleet: ServedFleet = held.fleet
    continued = 0
    with fleet:
        for n in range(STOPS):
            job_id = held.start(n)
            zombie = psutil.Process(held.starts(n)[-1])
            zombie.suspend()
            fleet.until(lambda n=n: len(held.starts(n)) == 2, "the second start", timeout_s=60)
            try:
                zombie.resume()
                continued += 1
            except psutil.NoSuchProcess:
                pass
            job = held.ended(job_id, n)
            assert (job["status"], job["result"], job["attempt"]) == ("succeeded", 3 * n, 2), job
            attempts = fleet.request("GET", f"/v1/jobs/{job_id}/attempts").json()["attempts"]
            assert [(one["status"], (one["error"] or {}).get("cause")) for one in attempts] == [
                ("lost", "stopped"), ("succeeded", None),
            ]  # fmt: skip
            assert zombie.pid not in _living(fleet)
    record_property("figures", f"{STOPS} stops: {STOPS} second attempts won; {continued} zombies were there to be continued")


def test_what_never_ends_gives_its_slot_back(survivors: Any, record_property: Record) -> None:
    held = survivors(args=("--nworkers", str(len(ENDLESS))))
    fleet: ServedFleet = held.fleet
    longest = 0.0
    with fleet:
        for round_ in range(ROUNDS):
            jobs = [
                fleet.post(f"survival/{endpoint}", {"how": how, "n": round_}).json()["job_id"] for endpoint, how in ENDLESS
            ]
            for (_, how), job_id in zip(ENDLESS, jobs, strict=True):
                job = ended(fleet, job_id)
                assert (job["status"], job["error"]["cause"], job["attempt"]) == ("failed", "timeout", 1), (how, job)
                took = _seconds(job["finished_at"]) - _seconds(job["started_at"])
                longest = max(longest, took - 1)
            fleet.until(lambda: fleet.status()["agents"][0]["free"] == len(ENDLESS), "all slots to be back", timeout_s=30)
        after = held.start(10_000)
        assert held.ended(after, 10_000)["status"] == "succeeded"
    told = f"slots were back {longest:.1f} s after their time at most"
    record_property("figures", f"{ROUNDS * len(ENDLESS)} never ended; {told}")
    assert longest < SLOT_BACK_S


def test_results_that_cannot_be_stored_cost_the_server_nothing(survivors: Any, record_property: Record) -> None:
    held = survivors(args=("--nworkers", "1", "--memory-limit", "4GiB"))
    fleet: ServedFleet = held.fleet
    causes: dict[str, str] = {}
    with fleet:
        assert held.ended(held.start(0), 0)["result"] == 0
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
        assert held.ended(held.start(1), 1)["result"] == 3
        assert "Traceback" not in fleet.logs()
    grown = (most - before) >> 20
    record_property("figures", f"{len(causes)} results; server's memory +{grown} MB; {causes}")
    assert raw == b'[{"$float":"NaN"},{"$float":"Infinity"},{"$float":"-Infinity"}]'
    told = {"not a number": "succeeded", "loud exception": "exception"}
    told |= {"liar": "exception", "liar in a list": "exception"}  # what its own code raised when asked for a graph
    told |= {kind: "result_too_large" for kind in causes if kind.startswith("too large")}
    assert causes == {kind: told.get(kind, "result_not_serializable") for kind in causes}
    assert grown < 50


def _living(fleet: ServedFleet) -> set[int]:
    return {process.pid for process in fleet.processes()}


def _alive(fleet: ServedFleet, pids: list[int]) -> set[int]:
    return _living(fleet) & set(pids)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
