"""One job that kills its process hurts only itself, and a user who keeps doing it only that user."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.agent.fake_server import agent_process
from tests.integration.core_fleet import CoreFleet


def test_a_poisonous_job_fails_and_every_innocent_one_succeeds(tmp_path: Path) -> None:
    with CoreFleet(tmp_path, args=("--nworkers", "2", "--nthreads", "4")) as fleet:
        innocent = []
        poisonous: dict[str, str] = {}
        for number in range(60):
            if number % 20 == 10:
                name = f"poison-{number}"
                poisonous[name] = fleet.post("core/poison", {"name": name}).json()["job_id"]
            innocent.append(fleet.post("core/nap", {"name": f"nap-{number}"}).json()["job_id"])
        for job_id in innocent:
            ended = fleet.ended(job_id, timeout_s=90)
            assert ended["status"] == "succeeded", ended
        for name, job_id in poisonous.items():
            ended = fleet.ended(job_id, timeout_s=90)
            assert (ended["status"], ended["error"]["cause"]) == ("failed", "worker_died")
            assert fleet.starts(name) <= 3  # once among others, twice alone; what was given back unbegun does not count
            assert set(fleet.states(job_id)) == {"lost"}
        assert fleet.post("core/quick", {"name": "after"}, wait=30).json()["status"] == "succeeded"


def test_a_user_who_keeps_killing_processes_is_paused_and_others_are_not(tmp_path: Path) -> None:
    with CoreFleet(tmp_path, args=("--nworkers", "2", "--nthreads", "1")) as fleet:
        made = fleet.request("POST", "/v1/tokens", {"user": "eve", "scopes": ["submit", "read"]})
        eve = made.json()["token"]
        killers = [fleet.post("core/poison", {"name": f"p{n}"}, token=eve).json()["job_id"] for n in range(8)]
        paused = fleet.until(lambda: fleet.status()["paused"], "eve to be paused", timeout_s=60)
        assert [each["user"] for each in paused] == ["eve"]
        later = fleet.post("core/quick", {"name": "accepted all the same"}, token=eve)
        assert later.status == 202
        assert "pause of its user" in fleet.job(later.json()["job_id"])["waiting_for"]
        assert fleet.post("core/quick", {"name": "mine"}, wait=30).json()["status"] == "succeeded"
        assert fleet.starts("accepted all the same") == 0
        for job_id in [*killers, later.json()["job_id"]]:
            assert fleet.request("DELETE", f"/v1/jobs/{job_id}", token=eve).status in {200, 202}


def test_a_job_that_kills_the_parent_of_its_process_costs_nobody_else_the_result(tmp_path: Path) -> None:
    with CoreFleet(tmp_path, args=("--nworkers", "2", "--nthreads", "1")) as fleet:
        innocent = fleet.post("core/gated", {"name": "innocent"}).json()["job_id"]
        fleet.until_started("innocent")
        for number in range(2):  # in the other process, each with the same parent
            name = f"parricide-{number}"
            ended = fleet.ended(fleet.post("core/parricide", {"name": name}).json()["job_id"])
            assert (ended["status"], ended["error"]["cause"]) == ("failed", "worker_died")
            assert "must not send signals to the parent" in ended["error"]["message"]
            assert fleet.starts(name) <= 3
        fleet.until_started("innocent", times=2)
        fleet.open_gate("innocent")
        ended = fleet.ended(innocent)
        assert (ended["status"], ended["attempt"]) == ("succeeded", 2)  # the second time it had a parent of its own
        assert fleet.states(innocent) == ["lost", "succeeded"]


def test_beside_endless_deaf_jobs_an_innocent_one_ends_and_their_user_is_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs the process that it is in, and all that runs beside it there."""
    with CoreFleet(tmp_path, args=("--no-agent",)) as fleet:
        for name, value in fleet.environment.items():
            monkeypatch.setenv(name, value)
        with agent_process(fleet.data_dir, nworkers=2, nthreads=2, timeout_grace_s=0.1):
            slots = lambda: sum(agent["slots"] for agent in fleet.status()["agents"])  # noqa: E731
            fleet.until(lambda: slots() == 4, "the agent to have loaded the service")
            eve = fleet.request("POST", "/v1/tokens", {"user": "eve", "scopes": ["submit", "read"]}).json()["token"]
            innocent = fleet.post("core/gated", {"name": "innocent"}).json()["job_id"]
            for number in range(40):
                assert fleet.post("core/deaf", {"name": f"deaf-{number}"}, token=eve).status == 202
            paused = fleet.until(lambda: fleet.status()["paused"], "eve to be paused", timeout_s=90)
            assert [each["user"] for each in paused] == ["eve"]
            fleet.open_gate("innocent")
            ended = fleet.ended(innocent)
            assert ended["status"] == "succeeded"
            assert 2 <= ended["attempt"] <= 3  # hit twice at most: then it had a process of its own
            for job in fleet.request("GET", "/v1/jobs?limit=100", token=eve).json()["jobs"]:
                fleet.request("DELETE", f"/v1/jobs/{job['job_id']}", token=eve)
