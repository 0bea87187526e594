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

import psutil
import pytest
from tests.promises.form import FULL, Record

from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

JOBS, KILLS = (1_000, 20) if FULL else (24, 2)
ON_CLUSTERS = 4
"""Every so many-th job has a cluster; the others show that they are not concerned."""
SEED = 20261121
HERE = Path(__file__).parent
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Verdict:
    """What became of jobs whose schedulers were killed."""

    jobs: int
    right: int
    kills: int
    median_s: float
    """From the kill until the first task of that job began again."""
    longest_s: float
    extra_attempts: int
    innocents_run_again: int


def listeners(fleet: ServedFleet) -> dict[int, int]:
    """Return the process that listens on each port."""
    agent = fleet.agent_pid()
    assert agent is not None
    found = {}
    for process in psutil.Process(agent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = process.pid
    return found


def begun(folder: Path) -> dict[str, list[float]]:
    """Return when the tasks of each job began."""
    return {path.name: [float(line) for line in path.read_text().split()] for path in folder.iterdir()}


def kill_one(fleet: ServedFleet, folder: Path, rng: random.Random) -> float | None:
    """Kill the scheduler of a job whose task runs; return how long it took until that job's task ran again."""

    def running() -> list[str]:
        clusters = fleet.request("GET", "/v1/clusters").json()["clusters"]
        return [one["address"] for one in clusters if one["status"] == "running" and one["workers"] > 0]

    before = {name: len(times) for name, times in begun(folder).items()}
    addresses = fleet.until(running, "a running cluster", timeout_s=PATIENCE_S)
    pid = listeners(fleet).get(int(rng.choice(addresses).rpartition(":")[2]))
    if pid is None:
        return None  # it has closed meanwhile
    killed = time.time()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None

    def again() -> list[float]:
        now = begun(folder)
        return [times[-1] for name, times in now.items() if len(times) > 1 and len(times) > before.get(name, 0)]

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := again():
            return max(0.0, min(found) - killed)
        time.sleep(0.02)
    return None  # its task had ended: its result was on the way


def test_a_dead_scheduler_costs_seconds_not_jobs(tmp_path: Path, record_property: Record) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    rng = random.Random(SEED)
    args = ("--nworkers", "4", "--nthreads", "1")
    env = {"SCHEDULED_S": "0.5" if FULL else "2"}
    with ServedFleet([HERE / "service_scheduled.py"], tmp_path / "data", args=args, env=env) as fleet:
        ids = {}
        for n in range(JOBS):
            on_cluster = n % ON_CLUSTERS == 0
            body = {"n": n, "folder": str(folder)} if on_cluster else {"n": n}
            ids[n] = fleet.post(f"scheduled/{'triple' if on_cluster else 'plain'}", body).json()["job_id"]
        recoveries: list[float] = []
        tries = 0
        while len(recoveries) < KILLS and tries < 3 * KILLS:
            tries += 1
            if (took := kill_one(fleet, folder, rng)) is not None:
                recoveries.append(took)

        def left() -> int:
            status = fleet.status()
            return int(status["queued"] + status["running"])

        fleet.until(lambda: left() == 0, "all jobs to end", timeout_s=1_200 if FULL else 240)
        jobs = {n: fleet.job(job_id) for n, job_id in ids.items()}
        fleet.until(lambda: not fleet.request("GET", "/v1/clusters").json()["clusters"], "clusters to close", timeout_s=60)
    verdict = Verdict(
        jobs=JOBS,
        right=sum(job["status"] == "succeeded" and job["result"] == 3 * n for n, job in jobs.items()),
        kills=len(recoveries),
        median_s=round(statistics.median(recoveries), 2) if recoveries else -1.0,
        longest_s=round(max(recoveries), 2) if recoveries else -1.0,
        extra_attempts=sum(job["attempt"] - 1 for job in jobs.values()),
        innocents_run_again=sum(job["attempt"] > 1 for n, job in jobs.items() if n % ON_CLUSTERS),
    )
    record_property("figures", str(verdict))
    assert verdict.right == verdict.jobs, [job for n, job in jobs.items() if job["status"] != "succeeded"][:3]
    assert verdict.kills == KILLS
    assert verdict.innocents_run_again == 0
    assert verdict.extra_attempts <= tries
    assert verdict.median_s <= (3.0 if FULL else 15.0)  # a busy machine takes its time; the full form has it to itself


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
