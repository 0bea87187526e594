"""Logs of jobs in a real fleet: whoever writes, it lands with the attempt it was written for, whole and once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dask_fleet.client import Client, LogText
from dask_fleet.model.logs import MAX_LOG_BYTES
from dask_fleet.testing.served import ServedFleet

SERVICE = Path(__file__).with_name("log_service.py")
CLI = Path(sys.executable).with_name("dask-fleet")


@contextlib.contextmanager
def log_fleet(folder: Path, *args: str) -> Iterator[ServedFleet]:
    gates = folder / "gates"
    gates.mkdir()
    with ServedFleet([SERVICE], folder / "data", args=("--nworkers", "1", *args), env={"LOG_GATES": str(gates)}) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    with log_fleet(tmp_path_factory.mktemp("logs"), "--nthreads", "3") as fleet:
        yield fleet


def ended(fleet: ServedFleet, endpoint: str, **params: Any) -> dict[str, Any]:
    job: dict[str, Any] = fleet.post(f"logs/{endpoint}", params, wait=40).json()
    assert job["status"] in {"succeeded", "failed"}, job
    return job


def text(fleet: ServedFleet, job: dict[str, Any], query: str = "?stream=stdout") -> str:
    answer = fleet.request("GET", job["links"]["logs"] + query)
    assert answer.status == 200, answer.body
    return answer.body.decode()


def files(fleet: ServedFleet) -> set[Path]:
    return {path for path in (fleet.data_dir / "logs").rglob("*") if path.is_file()}


def test_each_stream_has_what_was_written_to_it(fleet: ServedFleet) -> None:
    before = files(fleet)
    job = ended(fleet, "speak", text="hello")
    assert text(fleet, job) == "hello out\nhello bytes\n"
    assert text(fleet, job, "?stream=stderr") == "hello err\n"
    logged = text(fleet, job, "?stream=log").splitlines()
    assert logged[0].endswith("Z INFO    mine: hello logged")
    assert logged[1].endswith("Z ERROR   mine: hello caught")
    assert logged[2] == "Traceback (most recent call last):"
    assert logged[-1] == "KeyError: 'hello'"
    assert "too fine" not in "".join(logged)
    both = text(fleet, job, "").split("\n")
    assert [line for line in both if line.startswith("==>")] == [
        "==> attempt 1 stdout <==",
        "==> attempt 1 stderr <==",
        "==> attempt 1 log <==",
    ]
    fleet.until(lambda: "hello past Python" in (fleet.data_dir / "agent.log").read_text(), "it in the agent's log")
    own = (fleet.data_dir / "agent.log").read_text()
    assert "hello out" not in own
    assert "hello caught" not in own
    assert "imported, on the worker process's own stream" in own
    made = files(fleet) - before
    assert {path.suffix for path in made} == {".stdout", ".stderr", ".log"}
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in made} == {0o700}


def test_a_job_that_writes_nothing_has_no_file(fleet: ServedFleet) -> None:
    before = files(fleet)
    job = ended(fleet, "silent", n=1)
    assert files(fleet) == before
    assert text(fleet, job, "") == ""
    listing = fleet.request("GET", job["links"]["logs"], headers={"Accept": "application/json"}).json()
    assert listing == {"job_id": job["job_id"], "attempts": [{"attempt": 1, "streams": []}]}


def test_coroutines_threads_and_tasks_write_into_their_own_jobs_log(fleet: ServedFleet) -> None:
    """All of them at once, in one process: nobody's text lands in another's log."""
    names = [f"n{number}" for number in range(4)]
    found: dict[tuple[str, str], str] = {}

    def call(endpoint: str, name: str) -> None:
        found[endpoint, name] = text(fleet, ended(fleet, endpoint, text=name))

    callers = [
        threading.Thread(target=call, args=(endpoint, name)) for endpoint in ("waits", "threads", "graph") for name in names
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    for name in names:
        assert found["waits", name] == f"{name} before\n{name} in a thread\n{name} after\n"
        assert sorted(found["threads", name].splitlines()) == [
            f"{name} own thread",
            *(f"{name} shared {n}" for n in range(4)),
        ]
        assert sorted(found["graph", name].splitlines()) == [f"{name} task {n}" for n in range(6)]


def test_each_attempt_has_a_log_of_its_own(fleet: ServedFleet) -> None:
    job = ended(fleet, "flaky", text="thrice")
    assert [text(fleet, job, f"?attempt={n}&stream=stdout") for n in (1, 2, 3)] == [
        f"thrice start {n}\n" for n in (1, 2, 3)
    ]
    assert text(fleet, job) == "thrice start 3\n"
    listing = fleet.request("GET", job["links"]["logs"], headers={"Accept": "application/json"}).json()
    assert [(each["attempt"], each["streams"][0]["size"]) for each in listing["attempts"]] == [(n, 15) for n in (1, 2, 3)]
    with Client(fleet.url, fleet.token) as client:
        pieces = list(client.job(job["job_id"]).logs(follow=True))
    assert [(piece.attempt, piece.text) for piece in pieces] == [(n, f"thrice start {n}\n") for n in (1, 2, 3)]


def test_a_mebibyte_is_kept_and_the_rest_counted(fleet: ServedFleet) -> None:
    lines = 120_000
    job = ended(fleet, "flood", lines=lines)
    data = text(fleet, job).encode()
    assert MAX_LOG_BYTES - 200 < len(data) <= MAX_LOG_BYTES
    kept, _, note = data.decode().removesuffix("\n").rpartition("\n")
    written = "".join(f"{n:08d} äöü\n" for n in range(lines))
    assert written.startswith(kept)
    dropped = len(written.encode()) - len(kept.encode())
    assert note == f"[dask-fleet: only the first MiB of a stream is kept; {dropped} bytes were dropped]"
    tail = text(fleet, job, "?stream=stdout&tail=3").splitlines()
    assert tail == data.decode().splitlines()[-3:]


def test_parts_of_a_stream(fleet: ServedFleet) -> None:
    job = ended(fleet, "speak", text="parts")
    link = job["links"]["logs"]
    whole = b"parts out\nparts bytes\n"
    assert fleet.request("GET", f"{link}?stream=stdout&offset=6").body == whole[6:]
    assert fleet.request("GET", f"{link}?stream=stdout&offset={len(whole)}").body == b""
    answer = fleet.request("GET", f"{link}?stream=stdout", headers={"Range": "bytes=6-8"})
    assert (answer.status, answer.body, answer.headers["content-range"]) == (206, b"out", f"bytes 6-8/{len(whole)}")
    assert fleet.request("GET", f"{link}?stream=stdout", headers={"Range": "bytes=99-"}).status == 416
    for bad in ("?stream=all&offset=1", "?stream=core", "?attempt=0", "?tail=x", "?offset=1&tail=1&stream=log", "?x=1"):
        assert fleet.request("GET", link + bad).status == 400, bad
    answer = fleet.request("GET", link)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert fleet.request("GET", link, headers={"Accept": "image/png"}).status == 406


def test_what_is_nobodys(fleet: ServedFleet) -> None:
    job = ended(fleet, "forks", text="family")
    assert text(fleet, job) == "family parent\n"
    fleet.until(lambda: "family child" in (fleet.data_dir / "agent.log").read_text(), "it in the agent's log")
    answer = fleet.request("GET", "/v1/jobs/job-0000000000000000000000000000000000000000/logs")
    assert answer.status == 404
    assert fleet.request("GET", f"{job['links']['logs']}", token="fleet_" + "x" * 43).status == 401


def test_following_and_a_killed_worker(tmp_path: Path) -> None:
    with log_fleet(tmp_path) as fleet, Client(fleet.url, fleet.token) as client:
        job = client.submit("logs", "gated", {"text": "gate"})
        pieces = job.logs(follow=True)
        assert next(pieces) == LogText(1, "stdout", 0, "gate first\n")
        (tmp_path / "gates" / "gate").touch()
        assert [piece.text for piece in pieces] == ["gate second\n"]
        assert job.refresh_status() == "succeeded"

        job = client.submit("logs", "endless", {"text": "on"})
        pieces = job.logs(follow=True)
        assert next(pieces).text == "on and on\n"
        os.kill(fleet.worker_pids()[0], signal.SIGKILL)
        assert next(pieces) == LogText(2, "stdout", 0, "on and on\n")
        job.cancel()
        assert list(pieces) == []
        assert job.logs(attempt=1) == job.logs(attempt=2) == "on and on\n"


def test_a_follower_lives_through_a_restart_of_the_server(tmp_path: Path) -> None:
    """By the command line, which people leave running: nothing is missing, nothing comes twice, and it ends with the job."""
    with log_fleet(tmp_path) as fleet:
        job = fleet.post("logs/gated", {"text": "long"}).json()
        environ = {**os.environ, "FLEET_URL": fleet.url, "FLEET_TOKEN": fleet.token}
        follower = subprocess.Popen(
            [CLI, "jobs", "logs", job["job_id"], "-f", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
        with follower:
            assert follower.stdout is not None
            assert follower.stderr is not None
            first = json.loads(follower.stdout.readline())
            assert first == {"attempt": 1, "stream": "stdout", "text": "long first\n"}
            fleet.kill9()
            (tmp_path / "gates" / "long").touch()
            fleet.restart()
            rest = [json.loads(line) for line in follower.stdout.read().splitlines()]
            assert [line["text"] for line in rest] == ["long second\n"]
            assert follower.wait(60) == 0, follower.stderr.read()


def test_the_command_line(fleet: ServedFleet) -> None:
    job = ended(fleet, "colours", text="red")
    environ = {**os.environ, "FLEET_URL": fleet.url, "FLEET_TOKEN": fleet.token}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CLI, "jobs", "logs", job["job_id"], *args], capture_output=True, text=True, env=environ, timeout=60, check=False
        )

    assert run().stdout == "red plain\n"
    assert run("--raw").stdout == "\x1b[31mred\x1b[0m \x1b]0;title\x07plain\n"
    assert run("-f").stdout == "==> attempt 1 stdout <==\nred plain\n"
    assert json.loads(run("--json").stdout)["text"].startswith("\x1b[31mred")
    assert run("--stream", "log").stdout == ""
    assert run("--stream", "nonsense").returncode == 1


def test_ctrl_c_ends_following_cleanly(tmp_path: Path) -> None:
    with log_fleet(tmp_path) as fleet:
        job = fleet.post("logs/gated", {"text": "held"}).json()
        environ = {**os.environ, "FLEET_URL": fleet.url, "FLEET_TOKEN": fleet.token}
        follower = subprocess.Popen(
            [CLI, "jobs", "logs", job["job_id"], "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
        with follower:
            assert follower.stdout is not None
            assert follower.stderr is not None
            while b"held first" not in follower.stdout.readline():
                pass
            follower.send_signal(signal.SIGINT)
            assert follower.wait(30) == 130, follower.stderr.read()
            assert b"Traceback" not in follower.stderr.read()
        (tmp_path / "gates" / "held").touch()
