"""Order, retries, time-outs, cancels, deadlines, limits and caching, through the whole of a real fleet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from tests.integration.core_fleet import CORE, CoreFleet
from tests.users import add_users

USERS = ("ada", "bob")


@pytest.fixture(scope="module")
def tokens() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tokens: dict[str, str]) -> Iterator[CoreFleet]:
    """One fleet with one slot for all tests of this module; each test uses names of its own."""
    folder = tmp_path_factory.mktemp("dispatch")
    tokens.update(add_users(folder / "data", USERS))
    with CoreFleet(folder, args=("--nworkers", "1", "--max-queued", "20")) as made:
        yield made


@pytest.fixture
def fleet(served: CoreFleet) -> Iterator[CoreFleet]:
    """The fleet, idle before and after each test."""
    yield served
    served.open_all_gates()


def post(fleet: CoreFleet, endpoint: str, name: str, *, token: str | None = None, **headers: str) -> str:
    answer = fleet.post(f"core/{endpoint}", {"name": name}, wait=0, token=token, **headers)
    assert answer.status == 202, answer
    job_id: str = answer.json()["job_id"]
    return job_id


def hold_the_slot(fleet: CoreFleet, gate: str) -> str:
    job_id = post(fleet, "gated", gate)
    fleet.until_started(gate)
    return job_id


def seconds(one: str, other: str) -> float:
    return (datetime.fromisoformat(other) - datetime.fromisoformat(one)).total_seconds()


def test_priority_first_then_users_in_turn(fleet: CoreFleet, tokens: dict[str, str]) -> None:
    hold_the_slot(fleet, "order")
    jobs = [post(fleet, "quick", f"ada-{number}", token=tokens["ada"]) for number in range(3)]
    jobs.append(post(fleet, "quick", "bob-0", token=tokens["bob"]))
    jobs.append(post(fleet, "quick", "low", token=tokens["bob"], Fleet_Priority="-1"))
    jobs.append(post(fleet, "quick", "high", token=tokens["ada"], Fleet_Priority="7"))
    fleet.open_gate("order")
    for job_id in jobs:
        assert fleet.ended(job_id)["status"] == "succeeded"
    order = [name for name in fleet.order() if name in {"ada-0", "ada-1", "ada-2", "bob-0", "low", "high"}]
    assert order[0] == "high"
    assert order[-1] == "low"
    assert [name for name in order if name.startswith("ada")] == ["ada-0", "ada-1", "ada-2"]
    assert order.index("bob-0") <= 2, "bob waits for one of ada's jobs, not for all"


def test_a_waiting_job_says_what_for(fleet: CoreFleet) -> None:
    hold_the_slot(fleet, "why")
    job_id = post(fleet, "quick", "waits for a slot")
    assert fleet.job(job_id)["waiting_for"] == "a slot: all 1 are busy"
    fleet.open_gate("why")
    assert fleet.ended(job_id)["waiting_for"] is None


def test_retries_come_after_a_back_off(fleet: CoreFleet) -> None:
    answer = fleet.post("core/flaky", {"name": "flaky-2", "failures": 2})
    ended = fleet.ended(answer.json()["job_id"])
    assert (ended["status"], ended["attempt"], ended["run"]) == ("succeeded", 3, 1)
    attempts = fleet.attempts(ended["job_id"])
    assert [attempt["status"] for attempt in attempts] == ["failed", "failed", "succeeded"]
    assert attempts[0]["error"]["message"] == "start 1 fails"
    assert seconds(attempts[0]["finished_at"], attempts[1]["started_at"]) >= 0.49
    assert seconds(attempts[1]["finished_at"], attempts[2]["started_at"]) >= 0.99


def test_retries_end_and_failures_are_never_cached(fleet: CoreFleet) -> None:
    body = {"name": "flaky-4", "failures": 4}
    failed = fleet.ended(fleet.post("core/flaky", body).json()["job_id"])
    assert (failed["status"], failed["attempt"], failed["error"]["cause"]) == ("failed", 3, "exception")
    assert failed["error"]["type"] == "ValueError"
    answer = fleet.request("GET", f"/v1/jobs/{failed['job_id']}/result")
    assert (answer.status, answer.json()["code"]) == (409, "job_failed")
    again = fleet.post("core/flaky", body)
    assert (again.status, again.json()["run"], again.json()["job_id"]) == (202, 2, failed["job_id"])
    assert (fleet.ended(failed["job_id"])["status"], fleet.starts("flaky-4")) == ("succeeded", 5)


def test_a_job_past_its_time_fails_and_gives_its_slot_back(fleet: CoreFleet) -> None:
    job_id = post(fleet, "endless", "endless")
    after = post(fleet, "quick", "after the endless one")
    ended = fleet.ended(job_id)
    assert (ended["status"], ended["error"]["cause"], ended["attempt"]) == ("failed", "timeout", 1)
    assert 0.9 <= seconds(ended["started_at"], ended["finished_at"]) < 10
    assert fleet.ended(after)["status"] == "succeeded"


def test_a_queued_job_is_cancelled_at_once(fleet: CoreFleet, tokens: dict[str, str]) -> None:
    hold_the_slot(fleet, "cancel-queued")
    job_id = post(fleet, "quick", "never")
    answer = fleet.request("DELETE", f"/v1/jobs/{job_id}", token=tokens["bob"])
    assert (answer.status, answer.json()["status"], answer.json()["cancel_requested_by"]) == (200, "cancelled", "bob")
    fleet.open_gate("cancel-queued")
    assert fleet.ended(post(fleet, "quick", "after never"))["status"] == "succeeded"
    assert fleet.starts("never") == 0
    refused = fleet.request("GET", f"/v1/jobs/{job_id}/result")
    assert (refused.status, refused.json()["code"]) == (409, "job_cancelled")


def test_a_running_job_is_asked_to_end(fleet: CoreFleet) -> None:
    job_id = post(fleet, "cooperative", "cooperative")
    fleet.until_started("cooperative")
    (worker,) = fleet.worker_pids()
    assert fleet.request("DELETE", f"/v1/jobs/{job_id}").status == 202
    ended = fleet.ended(job_id)
    assert (ended["status"], ended["cancel_requested_by"], fleet.states(job_id)) == ("cancelled", "admin", ["cancelled"])
    assert fleet.worker_pids() == [worker], "its process need not die for that"


def test_a_stubborn_job_is_killed(fleet: CoreFleet) -> None:
    job_id = post(fleet, "stubborn", "stubborn")
    after = post(fleet, "quick", "after the stubborn one")
    fleet.until_started("stubborn")
    assert fleet.request("DELETE", f"/v1/jobs/{job_id}").status == 202
    ended = fleet.ended(job_id)
    assert ended["status"] == "cancelled"
    assert seconds(ended["started_at"], ended["finished_at"]) < 15
    assert fleet.ended(after)["status"] == "succeeded"


def test_a_deadline_ends_a_job_that_waits(fleet: CoreFleet) -> None:
    hold_the_slot(fleet, "deadline")
    job_id = post(fleet, "quick", "too late", Fleet_Deadline="0.5")
    ended = fleet.ended(job_id)
    assert ended["status"] == "expired"
    refused = fleet.request("GET", f"/v1/jobs/{job_id}/result")
    assert (refused.status, refused.json()["code"]) == (409, "job_expired")
    fleet.open_gate("deadline")
    again = fleet.post("core/quick", {"name": "too late"}, wait=20)
    assert (again.status, again.json()["run"], fleet.starts("too late")) == (200, 2, 1)


def test_a_full_queue_refuses_and_stores_nothing(fleet: CoreFleet) -> None:
    hold_the_slot(fleet, "full")
    waiting = [post(fleet, "quick", f"full-{number}") for number in range(20)]
    refused = fleet.post("core/quick", {"name": "one too many"})
    assert (refused.status, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert fleet.post("core/quick", {"name": "full-3"}).status == 202  # known already: it joins
    fleet.open_gate("full")
    for job_id in waiting:
        assert fleet.ended(job_id)["status"] == "succeeded"
    assert fleet.starts("one too many") == 0


def test_during_a_refresh_the_old_result_is_served(fleet: CoreFleet) -> None:
    fleet.open_gate("refresh")
    old = fleet.ended(post(fleet, "gated", "refresh"))
    fleet.shut_gate("refresh")
    refresh = fleet.request("POST", "/v1/core/gated?refresh=true", {"name": "refresh"})
    assert (refresh.status, refresh.json()["reason"], refresh.json()["run"]) == (202, "refresh", 2)
    fleet.until_started("refresh", times=2)
    served = fleet.request("GET", f"/v1/jobs/{old['job_id']}/result")
    assert (served.status, served.body) == (200, b'"refresh"')
    fleet.open_gate("refresh")
    ended = fleet.ended(old["job_id"])
    assert (ended["status"], ended["run"]) == ("succeeded", 2)


def test_a_known_request_is_answered_at_once_until_its_result_expires(fleet: CoreFleet) -> None:
    first = fleet.post("core/fleeting", {"name": "fleeting"}, wait=20)
    known = fleet.post("core/fleeting", {"name": "fleeting"})
    assert (first.status, known.status) == (200, 200)
    assert first.json()["result"] == known.json()["result"]
    job_id = first.json()["job_id"]
    fleet.until(lambda: fleet.request("GET", f"/v1/jobs/{job_id}/result").status != 200, "the result to expire")
    gone = fleet.request("GET", f"/v1/jobs/{job_id}/result")
    assert (gone.status, gone.json()["code"]) == (410, "result_expired")
    again = fleet.post("core/fleeting", {"name": "fleeting"}, wait=20)
    assert (again.status, again.json()["run"], fleet.starts("fleeting")) == (200, 2, 2)
    assert again.json()["result"] > first.json()["result"]


def test_progress_is_seen_while_it_runs(fleet: CoreFleet) -> None:
    job_id = post(fleet, "measured", "measured")
    seen = fleet.until(lambda: fleet.job(job_id)["progress"], "progress")
    assert seen == {"done": 3.0, "total": 10.0, "text": "a third"}
    fleet.open_gate("measured")
    ended = fleet.ended(job_id)
    assert (ended["status"], ended["progress"]) == ("succeeded", None)


def test_a_retry_opens_the_next_run(fleet: CoreFleet) -> None:
    job_id = post(fleet, "endless", "retried")
    assert fleet.ended(job_id)["status"] == "failed"
    answer = fleet.request("POST", f"/v1/jobs/{job_id}:retry")
    assert (answer.status, answer.json()["run"], answer.json()["reason"]) == (202, 2, "retry")
    ended = fleet.ended(job_id)
    assert (ended["run"], ended["attempt"]) == (2, 2)


# ---------------------------------------------------------------------- what runs where


def test_no_library_of_users_is_mapped_into_the_server(fleet: CoreFleet) -> None:
    """The worker that loaded the same service has numpy, so the look into /proc would find it."""
    assert fleet.ended(post(fleet, "quick", "maps"))["status"] == "succeeded"
    server = Path(f"/proc/{fleet.server_pid()}/maps").read_text()
    worker = Path(f"/proc/{fleet.worker_pids()[0]}/maps").read_text()
    assert "/numpy/" in worker
    for library in ("/numpy/", "/pandas/", "/pyarrow/", "/matplotlib/"):
        assert library not in server


APP = """
import asyncio, sys
from dask_fleet.config.settings import Settings
from dask_fleet.server import serve
seen = {}
async def look(*_, **__):
    seen["modules"] = sorted(sys.modules)
    return 0
serve._run_uvicorn = look
from pathlib import Path
serve.run(Settings(data_dir=Path(sys.argv[2]), port=0, agent=False), [sys.argv[1]])
print("\\n".join(seen["modules"]))
"""


def test_the_server_imports_neither_dask_nor_the_users_module(tmp_path: Path) -> None:
    """The app is built as `serve` builds it; then the interpreter's own list is read."""
    command = [sys.executable, "-c", APP, str(CORE), str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    tops = {name.partition(".")[0] for name in modules}
    assert "dask_fleet.server.app" in modules
    assert not tops & {"dask", "distributed", "numpy", "pandas", "pyarrow", "matplotlib", "cloudpickle"}
    assert not [name for name in modules if "core_service" in name]
    for package in ("dask_fleet.agent", "dask_fleet.client"):
        assert package not in modules
