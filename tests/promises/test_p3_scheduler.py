"""P3: a dead scheduler costs seconds, not jobs. Schedulers are killed while jobs are in flight."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.alive import listening
from tests.promises.form import FULL, Record

from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

JOBS, KILLS = (1_500, 20) if FULL else (24, 3)  # so that a thousand are still in flight at the last kill
ON_CLUSTERS = 4
"""Every so many-th job has a cluster; the others show that they are not concerned."""
SEED = 20261121
HERE = Path(__file__).parent
PATIENCE_S = 120.0
MEDIAN_S = 3.0
"""What is promised of a machine that has time for it."""


@dataclass(frozen=True)
class Verdict:
    """What became of jobs whose schedulers were killed."""

    jobs: int
    right: int
    kills: int
    in_flight: int
    """Fewest jobs that were unfinished when a scheduler was killed."""
    median_s: float
    """From the kill until the first task of that job began again."""
    longest_s: float
    extra_attempts: int
    innocents_run_again: int


def listener(fleet: ServedFleet, port: int) -> int | None:
    """Return the process that listens on a port, ``None`` if nobody does any more."""
    agent = fleet.agent_pid()
    assert agent is not None
    return next(iter(listening(agent, port)), None)


def unfinished(fleet: ServedFleet) -> int:
    status = fleet.status()
    return int(status["queued"] + status["running"])


def failed_attempts(fleet: ServedFleet, job: dict[str, Any]) -> int:
    """Count a job's attempts that failed. Those that an agent gave back, for want of a slot, never began."""
    if job["attempt"] == 1:
        return int(job["status"] != "succeeded")
    attempts = fleet.request("GET", f"/v1/jobs/{job['job_id']}/attempts").json()["attempts"]
    return sum(one["error"] is not None for one in attempts)


def story(fleet: ServedFleet, job: dict[str, Any]) -> str:
    """Tell, for the reader of a failed test, how a job came to its state."""
    return fleet.request("GET", f"/v1/jobs/{job['job_id']}/events", headers={"Accept": "text/plain"}).body.decode()


class Killer:
    """Kills schedulers of jobs whose task runs, and looks how long it takes until it runs again.

    No job is struck more than twice: one whose scheduler dies a fourth time is failed, for it may be the reason itself.
    """

    def __init__(self, fleet: ServedFleet, folder: Path) -> None:
        self._fleet, self._folder = fleet, folder
        self.ids: dict[int, str] = {}
        """Of all jobs, by their numbers."""
        self._rng = random.Random(SEED)
        self._struck: dict[int, list[int]] = {}
        """How often the task of a job had begun, whenever its scheduler was killed."""
        self.recoveries: list[float] = []
        self.in_flight: list[int] = []
        self.tries = 0

    def submit(self, jobs: int) -> None:
        """Submit that many more; they are told apart by their numbers."""
        with self._fleet.connect() as connection:
            for n in range(len(self.ids), len(self.ids) + jobs):
                on_cluster = n % ON_CLUSTERS == 0
                kind, body = ("triple", {"n": n, "folder": str(self._folder)}) if on_cluster else ("plain", {"n": n})
                self.ids[n] = connection.request("POST", f"/v1/scheduled/{kind}", body).json()["job_id"]

    def _begun(self, job: int) -> list[float]:
        """Return when the task of a job began, each time."""
        with contextlib.suppress(FileNotFoundError):
            return [float(line) for line in (self._folder / str(job)).read_text().split()]
        return []

    def _victims(self) -> list[tuple[int, str, str]]:
        found = []
        by_prefix = {job_id[:12]: (n, job_id) for n, job_id in self.ids.items()}
        clusters = self._fleet.request("GET", "/v1/clusters").json()["clusters"]
        if not clusters and unfinished(self._fleet) == 0:
            self.submit(JOBS)  # the last ones ended before enough schedulers were killed
        for one in clusters:
            job, job_id = by_prefix[one["name"].split("-")[1]]
            struck = self._struck.get(job, [])
            if one["status"] == "running" and len(struck) < 2 and len(self._begun(job)) > max(struck, default=0):
                found.append((job, job_id, one["address"]))
        return found

    def strike(self) -> None:
        """Kill a scheduler, and wait until the task of its job has begun again."""
        job, job_id, address = self._rng.choice(
            self._fleet.until(self._victims, "a cluster whose task runs", timeout_s=PATIENCE_S)
        )
        self.tries += 1
        in_flight, before = unfinished(self._fleet), len(self._begun(job))
        pid = listener(self._fleet, int(address.rpartition(":")[2]))
        killed = time.time()
        if pid is None:
            return  # it has closed meanwhile
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._struck.setdefault(job, []).append(before)

        def seen() -> bool:
            return len(self._begun(job)) > before or self._fleet.job(job_id)["finished_at"] is not None

        self._fleet.until(seen, "the task to begin again", timeout_s=PATIENCE_S)
        if (times := self._begun(job)[before:]):  # else its task had ended, and its result was on the way
            self.recoveries.append(max(0.0, times[0] - killed))
            self.in_flight.append(in_flight)


def test_a_dead_scheduler_costs_seconds_not_jobs(tmp_path: Path, record_property: Record) -> None:
    """Scenario 3."""
    folder = tmp_path / "begun"
    folder.mkdir()
    args = ("--nworkers", "4", "--nthreads", "1")
    env = {"SCHEDULED_S": "1" if FULL else "2"}
    with ServedFleet([HERE / "service_scheduled.py"], tmp_path / "data", args=args, env=env) as fleet:
        killer = Killer(fleet, folder)
        killer.submit(JOBS)
        while len(killer.recoveries) < KILLS and killer.tries < 3 * KILLS:
            killer.strike()
        fleet.until(lambda: unfinished(fleet) == 0, "all jobs to end", timeout_s=1_200 if FULL else 240)
        jobs = {n: fleet.job(job_id) for n, job_id in killer.ids.items()}
        fleet.until(lambda: not fleet.request("GET", "/v1/clusters").json()["clusters"], "clusters to close", timeout_s=60)
        failed = {n: failed_attempts(fleet, job) for n, job in jobs.items()}
        again = [story(fleet, job) for n, job in jobs.items() if n % ON_CLUSTERS and failed[n]]
    recoveries = killer.recoveries or [-1.0]
    verdict = Verdict(
        jobs=len(jobs),
        right=sum(job["status"] == "succeeded" and job["result"] == 3 * n for n, job in jobs.items()),
        kills=len(killer.recoveries),
        in_flight=min(killer.in_flight, default=0),
        median_s=round(statistics.median(recoveries), 2),
        longest_s=round(max(recoveries), 2),
        extra_attempts=sum(failed.values()),
        innocents_run_again=len(again),
    )
    record_property("figures", str(verdict))
    assert verdict.right == verdict.jobs, [job for n, job in jobs.items() if job["status"] != "succeeded"][:3]
    assert verdict.kills == KILLS
    assert not again, f"{again}\n{fleet.logs()}"
    assert verdict.extra_attempts <= killer.tries
    # The full form has the machine to itself. Beside other tests, everything takes as much longer as there is to do.
    crowd = 1.0 if FULL else max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert verdict.median_s <= MEDIAN_S * crowd, f"{crowd:.1f} times as much to do as there are processors"


def test_the_checker_notices_stock_dask(tmp_path: Path, record_property: Record) -> None:
    """Where one scheduler holds all, its end takes the jobs with it, though it is started again at once."""
    from distributed import Client
    from distributed.client import FutureCancelledError

    def slow_triple(n: int) -> int:
        time.sleep(0.2)
        return 3 * n

    with stock_dask(tmp_path) as (address, start_scheduler), Client(address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        futures = [client.submit(slow_triple, n, pure=False) for n in range(24)]
        futures[0].result(timeout=60)
        scheduler = start_scheduler.pop()
        scheduler.kill()
        scheduler.wait(10)
        right = 0
        for n, future in enumerate(futures):
            with contextlib.suppress(FutureCancelledError):
                right += future.result(timeout=30) == 3 * n
    record_property("figures", f"{right} of 24 with stock Dask")
    assert right < 24


@contextlib.contextmanager
def stock_dask(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and a worker from Dask's own command line."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    commands = (
        ("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
        ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder)),
    )
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "stock.log").open("ab") as log:
        try:
            started.extend(
                subprocess.Popen([sys.executable, "-m", "dask", *command], stdout=log, stderr=log, cwd=folder)
                for command in commands
            )
            yield address, started[:1]
        finally:
            for process in started:
                process.kill()
                process.wait(10)
