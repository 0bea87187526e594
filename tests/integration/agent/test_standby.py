"""The forkserver that waits for the death of the one in use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.alive import alive
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
                assert outcome.failure.cause is Cause.WORKER_DIED
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
            await until(lambda: not alive([worker.pid]))
            await until(lambda: (there := agent.workers()) and there != [worker], what="its successor")
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
            await until(lambda: not alive([standby.pid]))
            await until(lambda: not agent.members(), what="the end of all")

    run(scene)


FORK = """
import os, signal, time
from dask_fleet.agent import forkservers
from dask_fleet.agent.orphans import become_subreaper

become_subreaper()  # as an agent is, so that it can wait for the standby of a dead forkserver

def fork():
    process = forkservers.context().Process(target=os.getpid)
    forkservers.start(process)
    forkservers.have_standby()
    process.join(60)
    process.close()
"""


def run_script(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run what follows `FORK` in a process of its own: the handle of a forkserver is process-wide."""
    (folder / "script.py").write_text(FORK + script)
    return subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True, timeout=120)


def test_after_many_deaths_the_next_one_starts_afresh(tmp_path: Path) -> None:
    """Else its stack would grow for ever."""
    script = """
from dask_fleet.agent.orphans import children, end_orphans
forkservers._MOST_GENERATIONS = 1
fork()
for forked in (True, False, True):
    waiting = forkservers._standby
    assert (waiting.process is not None) is forked, waiting
    os.kill(forkservers.pid(), signal.SIGKILL)
    fork()
    assert forkservers.pid() == waiting.pid
forkservers.stop()
assert forkservers.known() == set()
from multiprocessing import resource_tracker
until = time.monotonic() + 30
while end_orphans(os.getpid(), known={resource_tracker._resource_tracker._pid}, reap=True) and time.monotonic() < until:
    time.sleep(0.01)
assert children(os.getpid()) == [resource_tracker._resource_tracker._pid]
print("all ended")
"""
    ran = run_script(tmp_path, script)
    assert "all ended" in ran.stdout, ran.stderr


def test_it_takes_over_even_from_one_that_dies_after_the_last_look(tmp_path: Path) -> None:
    """``multiprocessing`` looks once more before each fork, and would start a fresh one, with the standby left over."""
    script = """
fork()
first, waiting, look = forkservers.pid(), forkservers._standby, forkservers._replace_if_dead

def look_too_early(**more):
    forkservers._replace_if_dead = look
    was_dead = look(**more)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    return was_dead

forkservers._replace_if_dead = look_too_early
fork()
assert forkservers.pid() == waiting.pid, (first, waiting.pid, forkservers.pid())
assert forkservers._standby.generation == 2
forkservers.stop()
print("took over")
"""
    ran = run_script(tmp_path, script)
    assert "took over" in ran.stdout, ran.stderr
