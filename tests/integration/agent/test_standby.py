"""The forkserver that waits for the death of the one in use."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from tests.integration.agent.fake_server import AgentProcess, fleet, run, until

from dask_fleet.model.failure import Cause


async def pair(agent: AgentProcess) -> tuple[psutil.Process, psutil.Process]:
    """Return the forkserver and its standby, when there is one."""
    standby = await until(agent.standby, what="a standby")
    forkserver = agent.forkserver()
    assert forkserver is not None
    return forkserver, standby


def test_it_takes_over_and_has_a_standby_of_its_own(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            await until(agent.standby)
            depth = await server.value("depth")
            for number in range(3):
                start = await server.start("wait_for", path=str(tmp_path / f"gate{number}"))
                await until((tmp_path / f"gate{number}.started").exists)
                forkserver, standby = await pair(agent)
                forkserver.kill()
                outcome = await server.outcome(start)
                assert outcome.failure is not None
                assert outcome.failure.cause is Cause.AGENT_LOST
                assert await server.value("depth") >= depth  # no deeper a stack than the first had below it
                assert agent.forkserver() == standby
                assert psutil.Process(await server.value("pid")).ppid() == standby.pid
            await pair(agent)
            agent.terminate()
            assert await agent.exit_code() == 0
            await until(lambda: not agent.members(), what="the end of all")

    run(scene)


def test_without_one_a_forkserver_is_started_afresh(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            forkserver, standby = await pair(agent)
            (worker,) = agent.workers()
            forkserver.suspend()  # so that it cannot tell of the other's death
            standby.kill()
            forkserver.kill()
            await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
            await until(lambda: server.ready[-1].slots == 1)
            assert await server.value("double", n=2) == 4
            assert (await pair(agent))[0].pid not in {forkserver.pid, standby.pid}

    run(scene)


def test_one_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            _, standby = await pair(agent)
            pid = await server.value("pid")
            standby.kill()
            await until(lambda: (other := agent.standby()) is not None and other != standby, what="another standby")
            assert await server.value("pid") == pid

    run(scene)


@pytest.mark.parametrize("first", ["agent", "forkserver"])
def test_it_does_not_outlive_its_agent(tmp_path: Path, first: str) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (_server, agent):
            forkserver, standby = await pair(agent)
            forkserver.suspend()  # it shall end nobody
            for victim in (agent, forkserver) if first == "agent" else (forkserver, agent):
                victim.kill()
            await until(lambda: not standby.is_running() or standby.status() == psutil.STATUS_ZOMBIE)
            await until(lambda: not agent.members(), what="the end of all")

    run(scene)
