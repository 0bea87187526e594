"""Logs from an agent that shares no folder with the server: all of it arrives, whoever goes away meanwhile."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.integration.test_job_logs import SERVICE, ended, text

from dask_fleet.client import Client
from dask_fleet.model.logs import MAX_LOG_BYTES, LogStream, log_path
from dask_fleet.testing.served import ServedFleet


@contextlib.contextmanager
def agentless_fleet(folder: Path) -> Iterator[ServedFleet]:
    gates = folder / "gates"
    gates.mkdir()
    with ServedFleet(
        [SERVICE], folder / "data", args=("--no-agent",), env={"LOG_GATES": str(gates)}, ready_timeout_s=60
    ) as fleet:
        yield fleet


@contextlib.contextmanager
def far_agent(fleet: ServedFleet, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that knows the server's URL only."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "dask_fleet.agent", "--server", fleet.url, "--token-file", str(fleet.data_dir / "agent.token"),
        "--data-dir", str(folder), "--name", "far", "--nworkers", "1", "--nthreads", "2", "--orphan-timeout", "60",
    ]  # fmt: skip
    with (folder / "agent.log").open("ab") as log:
        agent = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=fleet._env
        )
    try:
        yield agent
    finally:
        agent.terminate()
        agent.wait(30)


def on_agent(folder: Path) -> list[Path]:
    """Return the files of logs that the agent still has."""
    return [path for path in (folder / "logs").glob("*/*") if path.is_file()]


def test_all_that_was_written_arrives(tmp_path: Path) -> None:
    with agentless_fleet(tmp_path) as fleet, far_agent(fleet, tmp_path / "far"):
        job = ended(fleet, "speak", text="far")
        fleet.until(lambda: text(fleet, job) == "far out\nfar bytes\n", "the log to arrive")
        fleet.until(lambda: text(fleet, job, "?stream=stderr") == "far err\n", "the other stream to arrive")
        with Client(fleet.url, fleet.token) as client:
            for n in range(5):  # who follows gets all of it, though the outcome may come first
                followed = client.submit("logs", "flood", {"lines": 20_000 + n})
                lines = "".join(piece.text for piece in followed.logs(follow=True)).splitlines()
                assert lines == [f"{line:08d} äöü" for line in range(20_000 + n)]
        flood = ended(fleet, "flood", lines=200_000)
        fleet.until(lambda: text(fleet, flood).endswith("bytes were dropped]\n"), "a whole MiB to arrive")
        assert MAX_LOG_BYTES - 200 < len(text(fleet, flood).encode()) <= MAX_LOG_BYTES
        fleet.until(lambda: not on_agent(tmp_path / "far"), "the agent to forget what has arrived")


def test_a_killed_server_and_a_killed_agent_lose_nothing(tmp_path: Path) -> None:
    far = tmp_path / "far"
    with agentless_fleet(tmp_path) as fleet:
        with far_agent(fleet, far) as agent:
            jobs = [fleet.post("logs/gated", {"text": name}).json() for name in ("one", "two")]
            for job, name in zip(jobs, ("one", "two"), strict=True):
                fleet.until(lambda job=job, name=name: text(fleet, job) == f"{name} first\n", "the beginning")
            fleet.kill9()
            for name in ("one", "two"):
                (tmp_path / "gates" / name).touch()
            fleet.until(lambda: len(list((far / "agent-outbox").glob("*.outcome"))) == 2, "both to end without a server")
            there = {path.read_text() for path in on_agent(far)}
            assert there == {f"{name} first\n{name} second\n" for name in ("one", "two")}
            agent.kill()
            agent.wait(10)
        # One of the two files is on the server's side cut short, as a crash of its host might: it is sent from there on.
        cut = fleet.data_dir / "logs" / log_path(1, 1, LogStream.STDOUT)
        cut.write_bytes(cut.read_bytes()[:3])
        fleet.restart()
        with far_agent(fleet, far):
            for job, name in zip(jobs, ("one", "two"), strict=True):
                whole = f"{name} first\n{name} second\n"
                fleet.until(lambda job=job, whole=whole: text(fleet, job) == whole, "the rest", timeout_s=60)
                assert fleet.job(job["job_id"], wait=30)["status"] == "succeeded"
                assert fleet.job(job["job_id"])["attempt"] == 1
            fleet.until(lambda: not on_agent(far), "the agent to forget what has arrived")
