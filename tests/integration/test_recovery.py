"""What survives, with real processes: kill -9 of each of them while a job runs, restarts, and a server that is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.core_fleet import CORE, CoreFleet

Core = Callable[..., CoreFleet]


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return lambda **options: CoreFleet(tmp_path, **options)


def start_gated(fleet: CoreFleet, name: str) -> str:
    """Post a job that runs until its gate opens; return its id once it runs."""
    answer = fleet.post("core/gated", {"name": name})
    assert answer.status == 202, answer
    fleet.until_started(name)
    job_id: str = answer.json()["job_id"]
    return job_id


def until_gone(fleet: CoreFleet, pids: set[int]) -> None:
    """No process of a killed family is left after ten seconds."""
    fleet.until(
        lambda: not pids.intersection(process.pid for process in fleet.processes()), f"the end of {pids}", timeout_s=10
    )


def test_a_running_job_outlives_the_server(core: Core) -> None:
    with core() as fleet:
        job_id = start_gated(fleet, "job")
        agent, workers = fleet.agent_pid(), fleet.worker_pids()
        fleet.kill9()
        fleet.restart()
        assert fleet.job(job_id)["status"] == "running"
        assert (fleet.agent_pid(), fleet.worker_pids()) == (agent, workers)
        fleet.open_gate("job")
        ended = fleet.ended(job_id)
        assert (ended["status"], ended["attempt"], ended["result"]) == ("succeeded", 1, "job")
        assert (fleet.starts("job"), fleet.states(job_id)) == (1, ["succeeded"])
        assert fleet.events(job_id) == ["accepted", "started", "succeeded"]


def test_an_outcome_of_the_time_without_server_arrives_later_once(core: Core) -> None:
    with core() as fleet:
        job_id = start_gated(fleet, "job")
        fleet.kill9()
        fleet.open_gate("job")
        outbox = fleet.data_dir / "agent-outbox"
        fleet.until(lambda: outbox.is_dir() and any(outbox.iterdir()), "the outcome to be spooled")
        fleet.restart()
        ended = fleet.ended(job_id)
        assert (ended["status"], ended["attempt"], ended["result"]) == ("succeeded", 1, "job")
        assert (fleet.starts("job"), fleet.states(job_id)) == (1, ["succeeded"])
        fleet.until(lambda: not any(outbox.iterdir()), "the spool to be cleared")


def test_a_spooled_outcome_outlives_its_agent(core: Core) -> None:
    with core() as fleet:
        job_id = start_gated(fleet, "job")
        fleet.kill9()
        fleet.open_gate("job")
        outbox = fleet.data_dir / "agent-outbox"
        fleet.until(lambda: outbox.is_dir() and any(outbox.iterdir()), "the outcome to be spooled")
        agent = fleet.agent_pid()
        assert agent is not None
        os.kill(agent, signal.SIGKILL)
        fleet.restart()
        ended = fleet.ended(job_id)
        assert (ended["status"], ended["attempt"], fleet.starts("job")) == ("succeeded", 1, 1)


@pytest.mark.parametrize("victim", ["worker", "forkserver", "agent"])
def test_a_job_outlives_the_processes_that_run_it(core: Core, victim: str) -> None:
    with core() as fleet:
        job_id = start_gated(fleet, "job")
        agent, forkserver, (worker,) = fleet.agent_pid(), fleet.forkserver_pid(), fleet.worker_pids()
        assert agent is not None
        assert forkserver is not None
        family = {"worker": [worker], "forkserver": [forkserver, worker], "agent": [agent, forkserver, worker]}[victim]
        os.kill(family[0], signal.SIGKILL)
        until_gone(fleet, set(family))
        fleet.until_started("job", times=2)
        fleet.open_gate("job")
        ended = fleet.ended(job_id)
        assert (ended["status"], ended["attempt"], ended["run"], ended["result"]) == ("succeeded", 2, 1, "job")
        assert fleet.states(job_id) == ["lost", "succeeded"]
        cause = fleet.attempts(job_id)[0]["error"]["cause"]
        assert cause == ("agent_lost" if victim == "agent" else "worker_died")
        assert (fleet.agent_pid() == agent) is (victim != "agent")
        # A forkserver may have been killed by what ran in it, so that the job had a process of its own, which goes with it.
        fleet.until(lambda: len(fleet.worker_pids()) == 1, "one process to be left")
        assert fleet.worker_pids() != [worker]


def test_a_job_outlives_server_and_agent(core: Core) -> None:
    with core() as fleet:
        job_id = start_gated(fleet, "job")
        queued = fleet.post("core/quick", {"name": "waits"}).json()["job_id"]
        family = {process.pid for process in fleet.processes()}
        agent = fleet.agent_pid()
        assert agent is not None
        fleet.kill9()
        os.kill(agent, signal.SIGKILL)
        until_gone(fleet, family)
        fleet.restart()
        fleet.until_started("job", times=2)
        fleet.open_gate("job")
        assert (fleet.ended(job_id)["status"], fleet.states(job_id)) == ("succeeded", ["lost", "succeeded"])
        assert (fleet.ended(queued)["status"], fleet.starts("waits")) == ("succeeded", 1)


def test_an_agent_without_server_ends_after_its_time(core: Core) -> None:
    with core(args=("--nworkers", "1", "--orphan-timeout", "1")) as fleet:
        family = {process.pid for process in fleet.processes()}
        fleet.kill9()
        until_gone(fleet, family)


def test_a_stopping_server_lets_running_jobs_end_and_keeps_queued_ones(core: Core) -> None:
    with core() as fleet:
        running = start_gated(fleet, "job")
        queued = fleet.post("core/quick", {"name": "waits"}).json()["job_id"]
        family = {process.pid for process in fleet.processes()}
        os.kill(fleet.server_pid(), signal.SIGTERM)
        fleet.until(lambda: fleet.request("GET", "/readyz").status == 503, "the server to drain")
        refused = fleet.post("core/quick", {"name": "too late"})
        assert (refused.status, refused.json()["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        fleet.open_gate("job")
        assert fleet.terminate() == 0
        until_gone(fleet, family)
        assert (fleet.starts("waits"), fleet.starts("too late")) == (0, 0)
        fleet.restart()
        assert (fleet.job(running)["status"], fleet.states(running)) == ("succeeded", ["succeeded"])
        assert (fleet.ended(queued)["status"], fleet.starts("waits")) == ("succeeded", 1)


def test_a_second_server_on_the_folder_refuses_to_start(core: Core) -> None:
    with core(args=("--no-agent",)) as fleet:
        program = Path(sys.executable).with_name("dask-fleet")
        command = [program, "serve", CORE, "--port", "0", "--data-dir", fleet.data_dir]
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        second = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=30, check=False, env=env
        )
        assert second.returncode == 1
        assert f"in use by process {fleet.server_pid()}" in " ".join(second.stderr.split())
        assert fleet.request("GET", "/readyz").status == 200
        assert fleet.status()["draining"] is False  # the one that was refused has left the folder as it was
