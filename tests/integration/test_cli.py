"""The command line against a real fleet, as a person uses it: in the folder where ``serve`` runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pyarrow as pa
import pytest

from dask_fleet.testing.served import ServedFleet

SERVICE = """
import time
from pathlib import Path
from typing import Literal

import pandas as pd

from dask_fleet import Service, progress

service = Service("cli")


@service.endpoint
def table(rows: int = 3, origin: Literal["EWR", "JFK"] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"i": range(rows), "origin": [origin] * rows})


@service.endpoint
def picture() -> bytes:
    return b"\\x00\\x01\\xff"


@service.endpoint
def fail():
    raise LookupError("nothing there")


@service.endpoint
def until(path: str) -> str:
    progress(1, 2, "half")
    while not Path(path).exists():
        time.sleep(0.01)
    return "there"
"""
COMMAND = str(Path(sys.executable).with_name("dask-fleet"))

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / ".fleet").mkdir(mode=0o700)
    (folder / "cli_service.py").write_text(SERVICE)
    with ServedFleet([folder / "cli_service.py"], folder / ".fleet", args=["--nworkers", "1"]) as fleet:
        yield fleet


@pytest.fixture
def environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}


@pytest.fixture
def run(fleet: ServedFleet, environ: dict[str, str]) -> Run:
    def run(*args: str) -> CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args], cwd=fleet.data_dir.parent, env=environ, capture_output=True, text=True, timeout=90, check=False
        )

    return run


def test_a_call_beside_serve_needs_no_setting(run: Run, fleet: ServedFleet, tmp_path: Path) -> None:
    done = run("call", "cli.table", "rows=2", "origin=JFK")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines() if line.strip()][-2:] == [["0", "JFK"], ["1", "JFK"]]
    document = json.loads(run("call", "cli.table", "rows=2", "origin=JFK", "--json").stdout)
    assert document["status"] == "succeeded"
    assert "JFK" in json.dumps(document["result"])
    assert run("call", "cli.table", "rows=2", "--output", str(tmp_path / "t.arrows")).returncode == 0
    assert pa.ipc.open_stream(tmp_path / "t.arrows").read_all().num_rows == 2


def test_bytes_are_piped_as_they_are(fleet: ServedFleet, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [COMMAND, "call", "cli.picture"],
        cwd=fleet.data_dir.parent,
        env=environ,
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"\x00\x01\xff")


def test_a_failed_job_is_found_and_told(run: Run) -> None:
    done = run("call", "cli.fail")
    assert (done.returncode, done.stdout) == (1, "")
    assert "LookupError: nothing there" in done.stderr
    assert 'raise LookupError("nothing there")' in done.stderr
    (found,) = json.loads(run("jobs", "list", "--state", "failed", "--json").stdout)
    shown = run("jobs", "show", found["job_id"]).stdout
    story = run("jobs", "show", found["job_id"], "--story").stdout
    assert "accepted from admin (priority 0)" in story
    assert "attempt 1 raised LookupError: nothing there" in story
    assert "It failed of exception.\nIts traceback is in the job's error." in story
    told = json.loads(run("jobs", "show", found["job_id"], "--story", "--json").stdout)
    assert [event["kind"] for event in told["events"]] == ["accepted", "started", "failed"]
    assert all(event["text"] in story for event in told["events"])
    assert "exception: LookupError: nothing there" in shown
    again = json.loads(run("jobs", "retry", found["job_id"], "--json").stdout)
    assert again[0]["run"] == 2
    watched = run("jobs", "watch", found["job_id"], "--json")
    assert watched.returncode == 1
    assert json.loads(watched.stdout.splitlines()[-1])["kind"] == "failed"


def test_wrong_parameters_are_named(run: Run) -> None:
    done = run("call", "cli.table", "rows=many", "origin=LGA")
    assert done.returncode == 1
    assert "rows" in done.stderr
    assert "origin" in done.stderr


def test_ctrl_c_leaves_a_job_that_goes_on(run: Run, fleet: ServedFleet, environ: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "call", "cli.until", f"path={tmp_path / 'go'}"],
        cwd=fleet.data_dir.parent,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        fleet.until(lambda: fleet.status()["running"], "the job to run")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "dask-fleet jobs" in err, "it says how to find the job, whether or not the answer had arrived"
    (found,) = json.loads(run("jobs", "list", "--endpoint", "cli.until", "--json").stdout)
    (tmp_path / "go").touch()
    assert run("jobs", "result", found["job_id"]).stdout.strip() == "there"


def test_the_doctor_is_content(run: Run) -> None:
    done = run("doctor", "--json")
    bad = {check["name"]: check["detail"] for check in json.loads(done.stdout) if check["ok"] is False}
    assert not bad.keys() - {"fsync", "disk space"}, bad  # a slow or full disk may be this machine's fault


def test_the_same_through_dask(run: Run, fleet: ServedFleet, environ: dict[str, str]) -> None:
    assert run("call", "cli.table").returncode == 0  # a job to list, whichever test came first
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dask")), "fleet", "jobs", "list", "--json", "--limit", "1"],
        cwd=fleet.data_dir.parent,
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert len(json.loads(done.stdout)) == 1, done.stderr
