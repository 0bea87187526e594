"""The story of a job that kills its worker processes: told by a real fleet, and told again after a restart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dask_fleet.client.sync_client import Client
from dask_fleet.model.errors import JobFailed
from dask_fleet.testing.served import ServedFleet

SERVICE = """
import os, signal, time
from dask_fleet import Service

service = Service("story")


@service.endpoint
def crash(n: int) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)  # another thread may be the one that dies of it
    return n


@service.endpoint(retries=1)
def shaky(path: str) -> str:
    if not os.path.exists(path):
        open(path, "w").close()
        raise ConnectionError("the other side went away")
    return "well"
"""


def told(fleet: ServedFleet, job_id: str) -> list[str]:
    """Return the sentences of a story, without times of day."""
    answer = fleet.request("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/plain"})
    return [re.sub(r"^ +[0-9:.]+ +(\+\S+ \S+ +)?", "", line) for line in answer.body.decode().splitlines()]


def test_a_story_outlives_the_server_that_saw_it(tmp_path: Path) -> None:
    module = tmp_path / "service.py"
    module.write_text(SERVICE)
    with ServedFleet([module], tmp_path / "data", args=("--nworkers", "1")) as fleet:
        ids = []
        for endpoint, params in (("story/crash", {"n": 1}), ("story/shaky", {"path": str(tmp_path / "there")})):
            job_id = fleet.post(endpoint, params).json()["job_id"]
            fleet.until(lambda job_id=job_id: fleet.job(job_id, wait=5)["finished_at"], "the end", timeout_s=60)
            ids.append(job_id)
        assert fleet.job(ids[0])["error"]["signal"] == "SIGSEGV"
        attempts = fleet.request("GET", f"/v1/jobs/{ids[0]}/attempts").json()["attempts"]
        assert [attempt["error"]["signal"] for attempt in attempts] == ["SIGSEGV"] * 2
        with Client(fleet.url, token=fleet.token) as client, pytest.raises(JobFailed) as refused:
            client.job(ids[0]).result()
        assert (refused.value.cause, refused.value.signal, refused.value.exit_code) == ("worker_died", "SIGSEGV", None)
        before = [told(fleet, job_id) for job_id in ids]
        crashed, shaken = before
        assert crashed[0] == f"story.crash, job {ids[0]} of admin: failed"
        assert crashed[2] == "accepted from admin (priority 0)"
        assert re.fullmatch(r"attempt 1 started on agent local-\S+", crashed[3])
        killed = r"the worker process was killed by SIGSEGV; it was alone there, so it is charged"
        then = r"(next attempt in \S+ ms|it waits for a slot again)"
        assert re.fullmatch(rf"attempt 1 after \S+ \S+: {killed} \(1 of 2\); {then}", crashed[4])
        assert re.fullmatch(r"attempt 2 started on agent local-\S+, alone in its worker process", crashed[5])
        assert re.fullmatch(rf"attempt 2 after \S+ \S+: {killed} \(2 of 2\); the job failed", crashed[6])
        assert crashed[7] == "It failed of worker_died."
        assert crashed[8].endswith("Then retry the job: it runs alone.")
        raised = "attempt 1 raised ConnectionError: the other side went away after"
        assert re.fullmatch(rf"{raised} \S+ \S+ \(exception 1, retries: 1\); next attempt in .*", shaken[4])
        assert shaken[-1].startswith("It succeeded; its result is kept until ")
        fleet.kill9()
        fleet.restart()
        assert [told(fleet, job_id) for job_id in ids] == before
