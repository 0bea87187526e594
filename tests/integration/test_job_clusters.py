"""Jobs with Dask clusters of their own, on a whole fleet: server, agent, schedulers, two slots."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.alive import listening

from dask_fleet.testing.served import ServedFleet

SERVICE = Path(__file__).parent / "agent" / "service_drivers.py"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    folder = tmp_path_factory.mktemp("job-clusters")
    with ServedFleet([SERVICE], folder / "data", args=("--nworkers", "2", "--nthreads", "1")) as served:
        yield served


def ended(fleet: ServedFleet, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job = fleet.job(job_id, wait=2)
        return job if job["status"] in {"succeeded", "failed", "cancelled", "expired"} else None

    found: dict[str, Any] = fleet.until(look, "the job to end", timeout_s=PATIENCE_S)
    return found


def value(fleet: ServedFleet, endpoint: str, **params: Any) -> Any:
    job = submit(fleet, endpoint, **params)
    end = ended(fleet, job)
    assert end["status"] == "succeeded", end
    return fleet.request("GET", f"/v1/jobs/{job}/result").json()


def submit(fleet: ServedFleet, endpoint: str, **params: Any) -> str:
    answer = fleet.post(f"trial/{endpoint}", params)
    assert answer.status in {200, 202}, answer
    return str(answer.json()["job_id"])


def clusters(fleet: ServedFleet) -> list[Any]:
    return list(fleet.request("GET", "/v1/clusters").json()["clusters"])


def test_small_graphs_stay_and_large_ones_move(fleet: ServedFleet) -> None:
    assert len(value(fleet, "pids", n=10)) == 1
    assert value(fleet, "graph", n=100_000) == 100_000 * 99_999 // 2
    assert value(fleet, "frames", kind="shuffle") == 2000
    assert value(fleet, "client_of_its_own")["default"]
    assert value(fleet, "client_in_a_coroutine", n=10) == 45
    assert value(fleet, "inside_tasks")["values"] == [2, 3, 4]
    fleet.until(lambda: not clusters(fleet), "the clusters to end with their jobs")


def test_twenty_drivers_on_two_slots(fleet: ServedFleet) -> None:
    """Each holds a thread that waits for tasks that need one of the same two slots."""
    jobs = [submit(fleet, "drives", n=n) for n in range(2, 22)]
    for n, job in enumerate(jobs, start=2):
        end = ended(fleet, job)
        assert end["status"] == "succeeded", end
        assert fleet.request("GET", f"/v1/jobs/{job}/result").json() == n * (n - 1)
    fleet.until(lambda: not clusters(fleet), "the clusters to end with their jobs")
    fleet.until(lambda: fleet.status()["agents"][0]["free"] == 2, "both slots to be free")


def test_a_full_pool_never_deadlocks_on_its_own_drivers(tmp_path: Path) -> None:
    """One slot, and drivers that wait in its only thread for a loop or for threads of their own, which ask."""
    args = ("--nworkers", "1", "--nthreads", "1", "--spare-clusters", "0")
    with ServedFleet([SERVICE], tmp_path / "data", args=args) as fleet:
        kinds = ["drives_on_a_loop", "drives_from_threads", "computes_in_threads", "drives"]
        jobs = [(kind, submit(fleet, kind, n=10)) for kind in kinds * 2]
        for kind, job in jobs:
            end = ended(fleet, job)
            assert end["status"] == "succeeded", (kind, end)
            assert (fleet.request("GET", f"/v1/jobs/{job}/result").json(), end["attempt"]) == (90, 1)
        fleet.until(lambda: not clusters(fleet), "the clusters to end with their jobs")
        fleet.until(lambda: fleet.status()["agents"][0]["free"] == 1, "the slot to be free")
        assert value(fleet, "double", n=4) == 8


def test_what_the_pool_can_never_give_fails_at_once(fleet: ServedFleet) -> None:
    begun = time.monotonic()
    end = ended(fleet, submit(fleet, "too_wide", n=10))
    assert end["status"] == "failed"
    assert end["error"]["cause"] == "cluster_unavailable"
    assert "threads" in end["error"]["message"]
    assert time.monotonic() - begun < PATIENCE_S / 2


def schedulers(fleet: ServedFleet, port: int | None = None) -> list[int]:
    """The scheduler processes that listen, which spares do not."""
    agent = fleet.agent_pid()
    assert agent is not None
    return listening(agent, port)


def test_only_the_jobs_of_a_killed_scheduler_run_again(fleet: ServedFleet, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    innocent = submit(fleet, "compute_slowly", path=str(other))
    fleet.until(other.with_name("other.started").exists, "the other one's task", timeout_s=PATIENCE_S)
    before = {cluster["cluster_id"] for cluster in clusters(fleet)}
    job = submit(fleet, "compute_slowly", path=str(mine))
    fleet.until(mine.with_name("mine.started").exists, "the task", timeout_s=PATIENCE_S)
    (found,) = [cluster for cluster in clusters(fleet) if cluster["cluster_id"] not in before]
    port = int(found["address"].rpartition(":")[2])
    (victim,) = schedulers(fleet, port)
    os.kill(victim, signal.SIGKILL)
    fleet.until(lambda: fleet.job(job)["attempt"] == 2, "the second attempt", timeout_s=PATIENCE_S)
    mine.touch()
    assert ended(fleet, job)["status"] == "succeeded"
    other.touch()
    end = ended(fleet, innocent)
    assert (end["status"], end["attempt"]) == ("succeeded", 1)


def test_cancelling_ends_job_and_cluster(fleet: ServedFleet, tmp_path: Path) -> None:
    job = submit(fleet, "graph_slowly", path=str(tmp_path / "never"))
    fleet.until((tmp_path / "never.started").exists, "a task", timeout_s=PATIENCE_S)
    assert fleet.request("DELETE", f"/v1/jobs/{job}").status in {200, 202}
    assert ended(fleet, job)["status"] == "cancelled"
    (tmp_path / "never").touch()
    fleet.until(lambda: not clusters(fleet), "the cluster to end with its job", timeout_s=PATIENCE_S)


def test_a_restarted_server_takes_drivers_and_their_clusters_up(fleet: ServedFleet, tmp_path: Path) -> None:
    go = tmp_path / "go"
    jobs = [submit(fleet, "compute_slowly", path=str(go))]
    fleet.until(go.with_name("go.started").exists, "the task", timeout_s=PATIENCE_S)
    fleet.kill9()
    fleet.restart()
    fleet.until(lambda: fleet.status()["agents"][0]["free"] == 1, "the driver's slot to be free", timeout_s=PATIENCE_S)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda n: value(fleet, "double", n=n), range(50, 54))) == [100, 102, 104, 106]
    go.touch()
    for job in jobs:
        end = ended(fleet, job)
        assert (end["status"], end["attempt"]) == ("succeeded", 1)
    fleet.until(lambda: not clusters(fleet), "the cluster to end with its job", timeout_s=PATIENCE_S)


def roles(fleet: ServedFleet, victim: str) -> list[int]:
    """Return the processes to kill: of the driver and its workers, or what they all hang on."""
    found = {"workers": fleet.worker_pids(), "forkserver": [fleet.forkserver_pid()], "agent": [fleet.agent_pid()]}[victim]
    return [pid for pid in found if pid is not None]


@pytest.mark.parametrize("victim", ["workers", "forkserver", "agent"])
def test_a_driver_that_is_killed_runs_again_on_another_cluster(fleet: ServedFleet, tmp_path: Path, victim: str) -> None:
    """Scenarios 2 and 4: kill -9 of who holds the Dask client, of what all worker processes hang on, and of the agent."""
    go = tmp_path / "go"
    job = submit(fleet, "compute_slowly", path=str(go))
    started = go.with_name("go.started")
    fleet.until(started.exists, "the task", timeout_s=PATIENCE_S)
    (before,) = clusters(fleet)
    started.unlink()
    for pid in roles(fleet, victim):
        os.kill(pid, signal.SIGKILL)
    fleet.until(started.exists, "the task's second run", timeout_s=PATIENCE_S)
    assert before["cluster_id"] not in {cluster["cluster_id"] for cluster in clusters(fleet)}
    go.touch()
    end = ended(fleet, job)
    assert (end["status"], end["attempt"]) == ("succeeded", 2), end
    fleet.until(lambda: not clusters(fleet), "the cluster to end with its job", timeout_s=PATIENCE_S)
    fleet.until(lambda: fleet.status()["agents"][0]["free"] == 2, "both slots to be free", timeout_s=PATIENCE_S)


def test_a_graph_that_never_ends_is_ended_with_its_cluster(fleet: ServedFleet, tmp_path: Path) -> None:
    """Scenario 18: its time-out ends the job; the task hears nothing, so its process is killed, and the slot is back."""
    path = tmp_path / "stuck"
    job = submit(fleet, "graph_that_holds_the_lock", path=str(path))
    end = ended(fleet, job)
    assert (end["status"], end["error"]["cause"]) == ("failed", "timeout"), end
    assert path.with_name("stuck.started").exists()
    fleet.until(lambda: not clusters(fleet), "the cluster to end with its job", timeout_s=PATIENCE_S)
    fleet.until(lambda: fleet.status()["agents"][0]["free"] == 2, "both slots to be free", timeout_s=PATIENCE_S)
    assert value(fleet, "double", n=400) == 800
