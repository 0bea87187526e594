"""One job that kills its process hurts only itself, and a user who keeps doing it only that user."""

from __future__ import annotations

from pathlib import Path

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
