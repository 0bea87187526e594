"""Whom a backend may signal: the process that holds the lock of its folder, and never one that only has its number."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dask_fleet.backends.holder import AgentProcess, holder_pid
from dask_fleet.backends.local import LocalBackend
from dask_fleet.backends.sessions import members, started_at

HOLDS = """
import fcntl, os, subprocess, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.pwrite(descriptor, (sys.argv[2:] or [str(os.getpid())])[0].encode(), 0)
if len(sys.argv) == 2:
    subprocess.Popen(["sleep", "600"])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(lock: Path, *, says: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process hold a lock, which says that it is another one if asked to."""
    command = [sys.executable, "-c", HOLDS, str(lock), *([] if says is None else [str(says)])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()
            for pid in members(process.pid):
                os.kill(pid, 9)


def test_the_holder_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    backend = LocalBackend(data_dir=tmp_path, nworkers=1)
    with holder(tmp_path / "agent.lock") as process:
        assert len(members(process.pid)) == 2
        assert not asyncio.run(backend.dismiss(process.pid + 1))
        assert process.poll() is None
        assert asyncio.run(backend.dismiss(process.pid))
        assert members(process.pid) == []
        assert holder_pid(tmp_path / "agent.lock") is None


def test_a_stranger_whose_number_stands_in_the_lock_is_left_alone(tmp_path: Path) -> None:
    backend = LocalBackend(data_dir=tmp_path, nworkers=1)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        try:
            with holder(tmp_path / "agent.lock", says=stranger.pid):
                assert holder_pid(tmp_path / "agent.lock") == stranger.pid
                assert AgentProcess.holding(tmp_path / "agent.lock") is None
                assert not asyncio.run(backend.dismiss(stranger.pid))
                asyncio.run(backend.stop(timeout_s=0.0))
                assert stranger.poll() is None
        finally:
            stranger.kill()


def test_nobody_holds_a_lock_that_is_free_or_not_there(tmp_path: Path) -> None:
    assert AgentProcess.holding(tmp_path / "agent.lock") is None
    (tmp_path / "agent.lock").write_text(f"{os.getpid()}")
    assert AgentProcess.holding(tmp_path / "agent.lock") is None


def test_a_later_process_of_the_same_number_is_not_taken_for_it() -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        found = AgentProcess.open(process.pid)
        assert found is not None
        with found:
            assert found.left()
            found._started = (started_at(process.pid) or 0) - 1  # as though this one had come after it
            assert not found.left()
            found._send = lambda _: None  # type: ignore[method-assign]
            found.kill()
        assert process.poll() is None
        process.kill()
    assert started_at(process.pid) is None
