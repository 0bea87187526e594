"""A suspect's process has a parent of its own: it dies with no other, no other dies with it, and nothing of it is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.alive import alive, zombies
from tests.integration.agent.conftest import Shared, shared_fleet
from tests.integration.agent.fake_server import AgentProcess, FakeServer, fleet, run, until
from tests.integration.agent.test_blame import calm, lost, pid_in, started

from dask_fleet.model.failure import Blame, Cause
from dask_fleet.model.states import AttemptState

SLOTS = 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Two worker processes with a thread each."""
    yield from shared_fleet(tmp_path_factory.mktemp("pair") / "data", nworkers=2, nthreads=1)


def ppid(process: psutil.Process) -> int | None:
    """Its parent; of a process that is gone, none."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


async def kill_forkserver(server: FakeServer, agent: AgentProcess, *, slots: int = SLOTS) -> None:
    """Kill it and wait until its processes have ended and others are there."""
    forkserver = agent.forkserver()
    assert forkserver is not None
    guarded = {guard.pid for guard in agent.guards()}
    its = [worker.pid for worker in agent.workers() if ppid(worker) not in guarded]
    forkserver.kill()
    await until(lambda: not alive(its), what="the end of the processes")
    # Their successors may be there before anybody was told that they were missing.
    await until(lambda: agent.forkserver() not in {None, forkserver}, what="another forkserver")
    await until(lambda: server.ready[-1].slots == slots, what="their successors")


async def all_guards_gone(agent: AgentProcess) -> None:
    await until(lambda: not agent.guards(), what="the end of all guards")


def test_killing_the_parent_hits_the_suspect_only(pair: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        shared, pid = await started(server, "wait_for", tmp_path / "shared")
        other, _ = await started(server, "wait_for", tmp_path / "other", alone=True)
        forkserver = pair.agent.forkserver()
        outcome = await server.call("leaves", alone=True, how="parent")
        message = lost(outcome, Cause.WORKER_DIED, Blame.ALONE)
        assert "must not send signals to the parent" in message
        assert outcome.died_with == ""
        assert pair.agent.forkserver() == forkserver
        for gate in ("shared", "other"):
            (tmp_path / gate).touch()
        for start in (shared, other):
            assert (await server.outcome(start)).state is AttemptState.SUCCEEDED
        assert pid in {worker.pid for worker in pair.agent.workers()}
        await all_guards_gone(pair.agent)

    calm(pair, scene, slots=SLOTS)


def test_killing_the_parent_in_company_makes_suspects_of_all_that_had_it(pair: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        neighbour, _ = await started(server, "wait_for", tmp_path / "gate")
        culprit = await server.call("leaves", how="parent")
        victim = await server.outcome(neighbour)
        for outcome in (culprit, victim):
            lost(outcome, Cause.WORKER_DIED, Blame.SHARED)  # though each was alone in its process
        assert culprit.worker != victim.worker
        assert culprit.died_with == victim.died_with != ""

    calm(pair, scene, slots=SLOTS)


def test_a_suspect_outlives_the_forkserver_and_its_end_is_heard_all_the_same(pair: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        suspect, pid = await started(server, "wait_for", tmp_path / "gate", alone=True)
        dying, victim = await started(server, "wait_for", tmp_path / "never", alone=True)
        for _ in range(2):
            await kill_forkserver(server, pair.agent)
        assert pid_in(tmp_path / "gate.started") == pid
        os.kill(victim, signal.SIGSEGV)
        assert "SIGSEGV" in lost(await server.outcome(dying), Cause.WORKER_DIED, Blame.ALONE)
        (tmp_path / "gate").touch()
        assert (await server.outcome(suspect)).state is AttemptState.SUCCEEDED
        await all_guards_gone(pair.agent)
        assert not alive([pid, victim])
        # The agent takes away what it was left with: no zombie stays.
        await until(lambda: not zombies(pair.agent.popen.pid), what="no zombies")

    calm(pair, scene, slots=SLOTS)


def test_the_end_of_one_that_has_stopped_its_parent_is_heard(pair: Shared) -> None:
    async def scene(server: FakeServer) -> None:
        outcome = await server.call("leaves", alone=True, how="with its parent stopped")
        assert "exit code 7" in lost(outcome, Cause.WORKER_DIED, Blame.ALONE)
        await all_guards_gone(pair.agent)

    calm(pair, scene, slots=SLOTS)


@pytest.mark.parametrize("of", ["its process", "its guard", "the forkserver, then of the guard"])
def test_what_a_suspect_has_left_ends_with_it(pair: Shared, tmp_path: Path, of: str) -> None:
    """Four processes that hide from it, in sessions of their own."""

    async def scene(server: FakeServer) -> None:
        start = await server.start("scatters", alone=True, path=str(tmp_path / "pids"), timeout_s=600.0)
        text = await until(lambda: (tmp_path / "pids").read_text() if (tmp_path / "pids").exists() else "")
        pids = [int(pid) for pid in text.split()]
        assert len(alive(pids)) == 4
        (guard,) = pair.agent.guards()
        (worker,) = {process for process in pair.agent.workers() if ppid(process) == guard.pid}
        if of.startswith("the forkserver"):
            await kill_forkserver(server, pair.agent)
            assert len(alive(pids)) == 4  # it lives, and so does what it has started
        (worker if of == "its process" else guard).kill()
        lost(await server.outcome(start), Cause.WORKER_DIED, Blame.ALONE)
        await until(lambda: not alive([*pids, guard.pid, worker.pid]), what="the end of all", timeout_s=10)

    calm(pair, scene, slots=SLOTS)


@pytest.mark.parametrize("first", ["agent", "forkserver"])
def test_nothing_outlives_the_agent(tmp_path: Path, first: str) -> None:
    """Not even a process that C code keeps from noticing anything, whose guard the dead forkserver has left behind."""

    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            await server.start("keeps_the_interpreter", alone=True, path=str(tmp_path / "it"))
            await until((tmp_path / "it.started").exists)
            if first == "forkserver":
                await kill_forkserver(server, agent, slots=1)
                assert agent.guards()
            agent.kill()
            await until(lambda: not agent.members(), what="the end of all", timeout_s=10)

    run(scene)
