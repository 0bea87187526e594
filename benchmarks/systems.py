"""The systems under test, each started afresh for a round, each with two worker processes of one thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.generator import Load
from benchmarks.processes import ROOT, Processes, answers, free_port, listens, redis_server
from dask_fleet.testing.served import ServedFleet

UVICORN = [
    "-m",
    "uvicorn",
    "--host",
    "127.0.0.1",
    "--loop",
    "uvloop",
    "--http",
    "httptools",
    "--log-level",
    "warning",
    "--no-access-log",
]


@dataclass(frozen=True)
class System:
    """A running system: where it is and how it is asked."""

    url: str
    path: str
    mode: str
    headers: dict[str, str] = field(default_factory=dict)

    def load(self, *, connections: int, calls: int, first: int, repeated: bool = False) -> Load:
        return Load(
            url=self.url,
            path=self.path,
            mode=self.mode,
            headers=self.headers,
            connections=connections,
            calls=calls,
            first=first,
            repeated=repeated,
        )


@contextlib.contextmanager
def fleet(
    folder: Path, *, service: Path = ROOT / "benchmarks" / "service.py"
) -> Iterator[tuple[System, ServedFleet, float]]:
    """Serve the trivial function; yield it with its processes and the seconds from the command to ``/readyz``."""
    begin = time.perf_counter()
    with ServedFleet([service], folder, args=["--nworkers", "2"]) as served:
        ready_s = time.perf_counter() - begin
        yield fleet_system(served), served, ready_s


def fleet_system(served: ServedFleet) -> System:
    headers = {"Authorization": f"Bearer {served.token}", "Prefer": "wait=10"}
    return System(served.url, "/v1/bench/add_one", "wait", headers)


@contextlib.contextmanager
def dask_with_redis(folder: Path) -> Iterator[System]:
    """Peer (a): FastAPI + Client.submit + fire_and_forget + Redis by task id."""
    with Processes(folder) as processes, redis_server(processes) as redis_port:
        scheduler, port = free_port(), free_port()
        env = {
            "BENCH_REDIS_PORT": str(redis_port),
            "BENCH_SCHEDULER": f"tcp://127.0.0.1:{scheduler}",
            "PYTHONPATH": str(ROOT),
        }
        processes.python(
            "scheduler",
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            str(scheduler),
            "--no-dashboard",
            env=env,
        )
        processes.until(lambda: listens(scheduler), "the scheduler")
        processes.python(
            "workers",
            "-m",
            "distributed.cli.dask_worker",
            env["BENCH_SCHEDULER"],
            "--host",
            "127.0.0.1",
            "--nworkers",
            "2",
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            str(folder),
            env=env,
        )
        processes.python("dask-app", *UVICORN, "--port", str(port), "benchmarks.peers.dask_app:app", env=env)
        url = f"http://127.0.0.1:{port}"
        processes.until(lambda: answers(f"{url}/openapi.json"), "peer (a)")
        yield System(url, "/jobs", "poll")


@contextlib.contextmanager
def celery_with_redis(folder: Path) -> Iterator[System]:
    """Peer (b): FastAPI + Celery + Redis, late acknowledgement, two prefork workers."""
    with Processes(folder) as processes, redis_server(processes) as redis_port:
        port = free_port()
        env = {"BENCH_REDIS_PORT": str(redis_port), "PYTHONPATH": str(ROOT)}
        processes.python(
            "celery",
            "-m",
            "celery",
            "-A",
            "benchmarks.peers.celery_tasks",
            "worker",
            "--pool",
            "prefork",
            "--concurrency",
            "2",
            "--loglevel",
            "INFO",
            "--without-gossip",
            "--without-mingle",
            env=env,
        )
        processes.python("celery-app", *UVICORN, "--port", str(port), "benchmarks.peers.celery_app:app", env=env)
        url = f"http://127.0.0.1:{port}"
        processes.until(lambda: answers(f"{url}/openapi.json"), "peer (b)")
        processes.until(lambda: b"ready." in (folder / "celery.log").read_bytes(), "celery's workers")
        yield System(url, "/jobs", "poll")
