"""Nothing that user code has started outlives what was killed, however it hid."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.alive import alive
from tests.integration.agent.fake_server import FakeServer, agent_process, fleet, run, until
from tests.promises.form import FULL

from dask_fleet.model.states import AttemptState

GONE_S = 10.0
"""Promised."""
ROUNDS = 50 if FULL else 3


async def scatter(server: FakeServer, path: Path, **more: object) -> list[int]:
    """Let a job start processes that hide, and return their pids."""
    await server.start("scatters", path=str(path), timeout_s=600.0, **more)
    text = await until(lambda: path.exists() and path.read_text(), what="processes that hide")
    pids = [int(pid) for pid in text.split()]
    assert len(alive(pids)) == len(pids) == 4
    assert len({os.getsid(pid) for pid in pids}) == 4
    return pids


async def gone(pids: list[int]) -> None:
    try:
        await until(lambda: not alive(pids), what="the end of all", timeout_s=GONE_S)
    finally:
        for pid in alive(pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("victim", ["worker", "forkserver"])
def test_of_a_killed_worker_or_forkserver(tmp_path: Path, victim: str) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            for number in range(ROUNDS):
                await until(lambda: server.ready[-1].slots == 1, what="a worker process")
                pids = await scatter(server, tmp_path / f"pids{number}")
                family = [*agent.workers(), *([agent.forkserver()] if victim == "forkserver" else [])]
                target = family[-1]
                assert target is not None
                target.kill()
                await gone(pids)

    run(scene, patience_s=600.0 if FULL else 60.0)


def test_of_a_killed_agent(tmp_path: Path) -> None:
    async def scene() -> None:
        for number in range(ROUNDS if FULL else 2):
            async with fleet(tmp_path / f"data{number}", nworkers=1) as (server, agent):
                pids = await scatter(server, tmp_path / f"pids{number}")
                agent.kill()
                await gone(pids)

    run(scene, patience_s=600.0 if FULL else 60.0)


def test_of_an_agent_and_forkserver_killed_at_once(tmp_path: Path) -> None:
    """What bears the mark is ended by the next agent of the same folder."""

    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            pids = await scatter(server, tmp_path / "pids")
            forkserver = agent.forkserver()
            assert forkserver is not None
            forkserver.suspend()  # so that it cannot do its last duty
            agent.kill()
            forkserver.kill()
            with agent_process(server.data_dir, nworkers=1):
                await until(lambda: len(server.hellos) == 2, what="the next agent")
                marked = [pids[0], pids[2]]
                try:
                    await until(lambda: not alive(marked), what="the end of what is marked", timeout_s=GONE_S)
                finally:
                    for pid in alive(pids):
                        os.kill(pid, signal.SIGKILL)

    run(scene)


def test_what_a_living_worker_has_detached_is_left_alone(tmp_path: Path) -> None:
    """It may be a service of the function's own; it ends with the worker process that has started it."""

    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=2) as (server, agent):
            pids = await scatter(server, tmp_path / "pids", end=True)
            ended = await until(lambda: server.outcomes and server.outcomes[-1])
            (other,) = [w for w in agent.workers() if not ended.worker.endswith(f"-{w.pid}")]
            other.kill()
            await until(lambda: server.ready[-1].slots == 1)
            await until(lambda: server.ready[-1].slots == 2)
            assert (await server.call("double", n=1)).state is AttemptState.SUCCEEDED
            assert {pids[0], pids[2]} <= set(alive(pids))
            (own,) = [w for w in agent.workers() if ended.worker.endswith(f"-{w.pid}")]
            own.kill()
            await gone(pids)

    run(scene)


def test_an_agent_that_ends_takes_all_with_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            pids = await scatter(server, tmp_path / "pids", end=True)
            agent.terminate()
            assert await agent.exit_code() == 0
            await gone(pids)

    run(scene)


def test_a_result_that_was_being_written_is_removed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, _agent):
            spool = server.data_dir / "spool"
            kept = await server.call("large", size=1 << 20)
            server.acknowledges = False
            announced = await server.call("large", size=1 << 20)
            outcome = await server.call("spools", path=str(spool))
            assert outcome.state is AttemptState.LOST
            # What is announced and not acknowledged stays: the server has yet to fetch it.
            await until(lambda: {p.name for p in spool.iterdir()} <= {str(kept.spool), str(announced.spool)})
            assert announced.spool in {p.name for p in spool.iterdir()}

    run(scene)


def test_the_last_words_of_one_that_was_alone_are_told(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1, nthreads=2) as (server, agent):
            for endpoint, more, words in (
                ("aborts", {}, "free(): the last words"), ("leaves", {"how": "segfault"}, "Segmentation fault"),
            ):  # fmt: skip
                await until(lambda: server.ready[-1].slots == 2)
                outcome = await server.call(endpoint, **more)
                assert outcome.failure is not None
                assert words in outcome.failure.traceback
                assert "service_trial.py" in outcome.failure.traceback  # faulthandler says where
                assert words in agent.log()
            await until(lambda: server.ready[-1].slots == 2)
            neighbour = await server.start("wait_for", path=str(tmp_path / "gate"))
            await until((tmp_path / "gate.started").exists)
            outcomes = [await server.call("aborts"), await server.outcome(neighbour)]
            assert [o.failure and o.failure.traceback for o in outcomes] == ["", ""]  # they may be the neighbour's

    run(scene)
