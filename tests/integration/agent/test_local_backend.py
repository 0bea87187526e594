"""The local backend: launch, adopt, stop without a remainder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.integration.agent.fake_server import TOKEN, FakeServer, make_data_dir, run, until

from dask_fleet.backends.local import LocalBackend
from dask_fleet.backends.sessions import members
from dask_fleet.plugins import registry
from dask_fleet.plugins.backend import Health


def test_it_is_found_by_its_name() -> None:
    assert registry.load("backend", "local") is LocalBackend


def test_the_command_line_carries_no_secret(tmp_path: Path) -> None:
    backend = LocalBackend(data_dir=make_data_dir(tmp_path / "data"), nworkers=2, nthreads=3, orphan_timeout_s=7.0)
    command = " ".join(backend.command())
    assert TOKEN not in command
    assert "--nworkers 2 --nthreads 3 --memory-limit auto --orphan-timeout 7" in command


def test_launch_adopt_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_TOKEN", "secret")

    async def scene() -> None:
        server = FakeServer(make_data_dir(tmp_path / "data"))
        await server.open()
        first = LocalBackend(data_dir=server.data_dir, nworkers=1)
        try:
            assert await first.health() is Health.GONE
            await first.start()
            assert await first.health() in {Health.STARTING, Health.RUNNING}
            await server.loaded()
            pid = server.hellos[-1].pid
            assert os.getsid(pid) == pid  # a session of its own: Ctrl-C at the server does not reach it
            assert await server.value("environment") == {"token": False, "stdin": True}

            # Another server's life: the agent is there already.
            second = LocalBackend(data_dir=server.data_dir, nworkers=1)
            await second.start()
            assert await second.health() is Health.RUNNING
            assert [hello.pid for hello in server.hellos] == [pid]
            assert len([p for p in members(pid) if p == pid]) == 1

            await second.stop(timeout_s=10.0)
            assert members(pid) == []
            assert await second.health() is Health.GONE
            await second.stop(timeout_s=1.0)  # nothing there: harmless
            assert (server.data_dir / "agent.log").stat().st_mode & 0o777 == 0o600
        finally:
            await first.stop(timeout_s=0.0)
            await server.close()

    run(scene)


def test_an_agent_that_does_not_listen_is_killed_with_all_it_has_started(tmp_path: Path) -> None:
    async def scene() -> None:
        server = FakeServer(make_data_dir(tmp_path / "data"))
        await server.open()
        backend = LocalBackend(data_dir=server.data_dir, nworkers=1)
        try:
            await backend.start()
            await server.loaded()
            pid = server.hellos[-1].pid
            await server.start("spawns", path=str(tmp_path / "child"))
            child = int(await until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))
            assert child in members(pid)
            os.kill(pid, signal.SIGSTOP)
            await backend.stop(timeout_s=0.2)
            assert members(pid) == []
            # What it has written is kept beside the next agent's log.
            await backend.start()
            assert (server.data_dir / "agent.log.1").exists()
        finally:
            await backend.stop(timeout_s=0.0)
            await server.close()

    run(scene)
