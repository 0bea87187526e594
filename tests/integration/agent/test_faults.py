"""Processes that die, and what is reported and left of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.alive import alive
from tests.integration.agent.conftest import Shared, shared_fleet
from tests.integration.agent.fake_server import FakeServer, agent_process, fleet, make_data_dir, run, until

from dask_fleet.model.failure import Cause
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import Welcome


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker process with two threads; functions that do not listen have little time."""
    yield from shared_fleet(tmp_path_factory.mktemp("mortal") / "data", nworkers=1, nthreads=2, timeout_grace_s=0.2)


def test_a_worker_that_dies_loses_its_attempt_and_is_replaced(mortal: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        for how, said, ended_by in [
            ("os._exit", "exit code 7", (7, None)),
            ("segfault", "SIGSEGV", (None, "SIGSEGV")),
            ("kill", "SIGKILL", (None, "SIGKILL")),
        ]:
            outcome = await server.call("leaves", how=how)
            assert outcome.state is AttemptState.LOST
            assert outcome.failure is not None
            assert outcome.failure.cause is Cause.WORKER_DIED
            assert said in outcome.failure.message
            assert (outcome.failure.exit_code, outcome.failure.signal) == ended_by
            assert await server.value("double", n=4) == 8
        assert len(mortal.agent.workers()) == 1

    mortal.do(scene)


def test_neighbours_in_the_process_are_lost_with_it(mortal: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        neighbour = await server.start("wait_for", path=str(tmp_path / "gate"))
        await until(lambda: (tmp_path / "gate.started").exists())
        guilty = await server.call("leaves", how="kill")
        assert guilty.state is AttemptState.LOST
        assert (await server.outcome(neighbour)).state is AttemptState.LOST

    mortal.do(scene)


def test_what_a_function_has_spawned_ends_with_its_process(mortal: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        start = await server.start("spawns", path=str(tmp_path / "pid"))
        await until(lambda: (tmp_path / "pid").exists())
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        await server.cancel(start, grace_s=0.0)
        assert (await server.outcome(start)).state is AttemptState.CANCELLED
        await until(lambda: not alive([child.pid]), what="the child's end")

    mortal.do(scene)


@pytest.mark.parametrize("victim", ["agent", "forkserver"])
def test_kill_9_leaves_no_orphan(tmp_path: Path, victim: str) -> None:
    """Not even of a worker that can notice nothing by itself, because C code keeps the interpreter."""

    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=2) as (server, agent):
            start = await server.start("keeps_the_interpreter", path=str(tmp_path / "it"))
            await until(lambda: (tmp_path / "it.started").exists())
            workers = agent.workers()
            assert len(workers) == 2
            if victim == "agent":
                agent.kill()
                await until(lambda: not agent.members(), what="the end of the agent's session", timeout_s=10)
                return
            forkserver = agent.forkserver()
            assert forkserver is not None
            forkserver.kill()
            assert (await server.outcome(start)).state is AttemptState.LOST
            await until(lambda: not alive(w.pid for w in workers))
            await until(lambda: server.ready[-1].slots == 2)
            assert await server.value("double", n=1) == 2  # by a worker of a new forkserver
            await until(lambda: len(agent.workers()) == 2)

    run(scene)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class TestTime:
    def test_a_function_that_returns_after_its_time_has_timed_out(self, mortal: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            pid = await server.value("pid")
            outcome = await server.call("wait_until_cancelled", timeout_s=0.1, path=str(tmp_path / "it"))
            assert outcome.state is AttemptState.FAILED
            assert outcome.failure is not None
            assert outcome.failure.cause is Cause.TIMEOUT
            assert await server.value("pid") == pid  # it listened: its process was spared

        mortal.do(scene)

    def test_a_deaf_function_costs_its_process(self, mortal: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            pid = await server.value("pid")
            innocent = await server.start("wait_for", path=str(tmp_path / "gate"))
            outcome = await server.call("deaf", timeout_s=0.1, path=str(tmp_path / "it"))
            assert outcome.failure is not None
            assert (outcome.state, outcome.failure.cause) == (AttemptState.FAILED, Cause.TIMEOUT)
            lost = await server.outcome(innocent)
            assert lost.failure is not None
            assert (lost.state, lost.failure.cause) == (AttemptState.LOST, Cause.WORKER_DIED)
            assert "another attempt" in lost.failure.message
            assert await server.value("pid") != pid

        mortal.do(scene)

    def test_a_deaf_function_is_killed_when_cancelled(self, mortal: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            start = await server.start("deaf", path=str(tmp_path / "it"))
            await until(lambda: (tmp_path / "it.started").exists())
            await server.cancel(start, grace_s=0.1)
            assert (await server.outcome(start)).state is AttemptState.CANCELLED

        mortal.do(scene)


class TestLoading:
    def test_a_module_that_cannot_be_imported_is_a_problem_until_it_is_mended(
        self, mortal: Shared, tmp_path: Path
    ) -> None:
        async def scene(server: FakeServer) -> None:
            module = tmp_path / "broken.py"
            module.write_text("import nothing_of_that_name\n")
            welcome = msgspec.structs.replace(server.welcome, targets=[*server.welcome.targets, str(module)])
            # The test before may have had the process killed: one that has loaded must be there, or it would be kept.
            assert (await server.call("double", n=1)).state is AttemptState.SUCCEEDED
            (pid,) = [w.pid for w in mortal.agent.workers()]
            await server.send(msgspec.structs.replace(welcome, versions={"trial": "another"}))
            ready = await until(lambda: server.ready[-1].problems and server.ready[-1])
            assert "nothing_of_that_name" in ready.problems[str(module)]
            assert "changed" in ready.problems["trial"]
            assert [w.pid for w in mortal.agent.workers()] != [pid]
            module.write_text("from dask_fleet import Service\nservice = Service('mended')\n"
                              "@service.endpoint()\ndef one() -> int:\n    return 1\n")  # fmt: skip
            await server.send(msgspec.structs.replace(welcome, versions={"trial": server.version}))
            ready = await until(lambda: "mended" in server.ready[-1].versions and server.ready[-1])
            assert ready.problems == {}

        mortal.do(scene)

    def test_a_busy_worker_is_replaced_after_its_attempt(self, mortal: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:

            gate = tmp_path / "gate"
            start = await server.start("wait_for", path=str(gate))
            await until(lambda: _read(tmp_path / "gate.started"))
            await server.send(msgspec.structs.replace(server.welcome, versions={"trial": "another"}))
            await until(lambda: server.ready[-1].slots == 0)
            gate.touch()
            assert (await server.outcome(start)).state is AttemptState.SUCCEEDED
            await until(lambda: server.ready[-1].slots == 2)
            assert str(await server.value("pid")) != _read(tmp_path / "gate.started")

        mortal.do(scene)

    def test_a_module_that_kills_its_process_is_told_and_not_forked_in_a_hot_loop(self, tmp_path: Path) -> None:
        async def scene() -> None:

            module = tmp_path / "deadly.py"
            module.write_text(f"import os\nopen({str(tmp_path / 'deaths')!r}, 'a').write('x')\nos._exit(9)\n")
            server = FakeServer(make_data_dir(tmp_path / "data"))
            server.welcome = Welcome("ledger-a", [str(module)], {})
            await server.open()
            try:
                with agent_process(server.data_dir, nworkers=1):
                    ready = await until(lambda: server.ready and server.ready[-1])
                    assert "exit code 9" in ready.problems[str(module)]
                    assert ready.slots == 0
                    assert 2 <= len((tmp_path / "deaths").read_text()) <= 3
                    # What was on its way meanwhile does not wait for ever for a process that never comes.
                    given_back = await server.call("double", n=1)
                    assert (given_back.state, given_back.failure) == (AttemptState.CANCELLED, None)
            finally:
                await server.close()

        run(scene)


def test_a_stopped_worker_whose_attempt_is_cancelled_is_killed(mortal: Shared, tmp_path: Path) -> None:
    async def scene(server: FakeServer) -> None:
        start = await server.start("wait_for", path=str(tmp_path / "gate"))
        pid = int(await until(lambda: _read(tmp_path / "gate.started")))
        os.kill(pid, signal.SIGSTOP)
        await server.cancel(start, grace_s=0.1)
        assert (await server.outcome(start)).state is AttemptState.CANCELLED
        assert await server.value("pid") != pid

    mortal.do(scene)
