"""The server goes away and comes back; the agent ends; nothing is lost and nothing is left."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
from tests.integration.agent.fake_server import (
    AgentProcess,
    FakeServer,
    agent_process,
    fleet,
    make_data_dir,
    run,
    until,
)

from dask_fleet.model.failure import Cause
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import AttemptRef, Ready, Shutdown, Start


def spooled(agent: AgentProcess) -> list[Path]:
    return sorted((agent.data_dir / "agent-outbox").glob("*.outcome"))


def ref(start: Start) -> AttemptRef:
    return AttemptRef(start.seq, start.run, start.attempt)


def test_attempts_outlive_the_server(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=2) as (server, agent):
            server.acknowledges = False
            unacknowledged = await server.start("double", n=1)
            await server.outcome(unacknowledged)
            ends_meanwhile = await server.start("wait_for", path=str(tmp_path / "first"))
            await until((tmp_path / "first.started").exists)
            goes_on = await server.start("wait_for", path=str(tmp_path / "second"))
            await until((tmp_path / "second.started").exists)

            await server.close()
            await until(lambda: len(spooled(agent)) == 1, what="the unacknowledged outcome on disk")
            (tmp_path / "first").touch()
            await until(lambda: len(spooled(agent)) == 2, what="the outcome of an attempt that ended meanwhile on disk")
            assert all(path.stat().st_mode & 0o777 == 0o600 for path in spooled(agent))

            server.outcomes.clear()
            server.acknowledges = True
            await server.open()
            await until(lambda: len(server.hellos) == 2)
            first, second = server.hellos
            assert second.agent == first.agent
            assert second.ledger_id == "ledger-a"
            assert len(second.held) == 3
            assert all(ref(start) in second.held for start in (unacknowledged, ends_meanwhile, goes_on))
            for start in (unacknowledged, ends_meanwhile):
                assert (await server.outcome(start)).state is AttemptState.SUCCEEDED
            (tmp_path / "second").touch()
            assert (await server.outcome(goes_on)).state is AttemptState.SUCCEEDED
            await until(lambda: not spooled(agent), what="the removal of what was acknowledged")
            assert len(server.ready) >= 2  # said again to the server that came back
            assert len(server.outcomes) == 3

    run(scene)


def test_a_successor_delivers_what_a_killed_agent_left(tmp_path: Path) -> None:
    async def scene() -> None:
        data_dir = tmp_path / "data"
        async with fleet(data_dir, nworkers=1) as (server, agent):
            start = await server.start("wait_for", path=str(tmp_path / "gate"))
            await until((tmp_path / "gate.started").exists)
            await server.close()
            (tmp_path / "gate").touch()
            await until(lambda: spooled(agent))
            agent.kill()
            await server.open()
            with agent_process(data_dir, nworkers=1) as successor:
                outcome = await server.outcome(start)
                assert outcome.state is AttemptState.SUCCEEDED
                hello = server.hellos[-1]
                assert (hello.pid, hello.ledger_id, hello.held) == (successor.popen.pid, "ledger-a", [ref(start)])
                await until(lambda: not spooled(successor))

    run(scene)


def test_work_of_another_ledger_is_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=2) as (server, agent):
            server.acknowledges = False
            large = await server.call("large", size=1 << 20)
            spool = agent.data_dir / "spool" / str(large.spool)
            assert spool.exists()
            await server.start("deaf", path=str(tmp_path / "it"))
            await until((tmp_path / "it.started").exists)
            workers = {w.pid for w in agent.workers()}

            await server.close()
            await until(lambda: spooled(agent))
            server.outcomes.clear()
            server.acknowledges = True
            server.welcome = msgspec.structs.replace(server.welcome, ledger_id="ledger-b")
            await server.open()
            await until(lambda: len({w.pid for w in agent.workers()} - workers) == 1, what="a fresh worker process")
            await until(lambda: not spooled(agent) and not spool.exists(), what="the outbox dropped")
            await until(lambda: server.ready[-1].slots == 2)
            assert await server.value("double", n=2) == 4
            assert len(server.outcomes) == 1

    run(scene)


def test_a_refused_token_is_final_and_says_the_cure(tmp_path: Path) -> None:
    async def scene() -> None:
        server = FakeServer(make_data_dir(tmp_path / "data", token="wrong"))
        await server.open()
        try:
            with agent_process(server.data_dir) as agent:
                assert await agent.exit_code() == 1
                assert "agent.token" in agent.log()
                assert "wrong" not in agent.log()
                await until(lambda: not agent.members())
        finally:
            await server.close()

    run(scene)


def test_a_refused_protocol_is_final_and_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        server = FakeServer(make_data_dir(tmp_path / "data"))
        server.refusal = "the agent speaks protocol 2, this server 3"
        await server.open()
        try:
            with agent_process(server.data_dir, nworkers=1, orphan_timeout_s=600.0) as agent:
                assert await agent.exit_code() == 1
                assert "refuses this agent: the agent speaks protocol 2, this server 3" in agent.log()
                await until(lambda: not agent.members())
            assert len(server.hellos) == 1
        finally:
            await server.close()

    run(scene)


def test_a_server_that_is_not_ready_yet_is_asked_again(tmp_path: Path) -> None:
    async def scene() -> None:
        server = FakeServer(make_data_dir(tmp_path / "data"))
        server.accepts = False
        await server.open()
        try:
            with agent_process(server.data_dir, nworkers=1):
                await until(lambda: server.refused >= 2)
                server.accepts = True
                await until(lambda: server.hellos)
        finally:
            await server.close()

    run(scene)


def test_without_a_server_an_agent_ends_after_its_time(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1, orphan_timeout_s=0.5) as (server, agent):
            await server.start("deaf", path=str(tmp_path / "it"))
            await until((tmp_path / "it.started").exists)
            await server.close()
            assert await agent.exit_code() == 0
            await until(lambda: not agent.members())

    run(scene)


def test_shutdown_lets_attempts_end_and_delivers_them(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=2) as (server, agent):
            ends = await server.start("wait_for", path=str(tmp_path / "gate"))
            stays = await server.start("deaf", path=str(tmp_path / "it"))
            await until(lambda: (tmp_path / "gate.started").exists() and (tmp_path / "it.started").exists())
            await server.send(Shutdown(0.5))
            given_back = await server.call("double", n=1)
            assert (given_back.state, given_back.failure) == (AttemptState.CANCELLED, None)
            assert server.ready[-1] == Ready({}, {}, 0), "the server would send it again at once"
            (tmp_path / "gate").touch()
            assert (await server.outcome(ends)).state is AttemptState.SUCCEEDED
            cut_off = await server.outcome(stays)
            assert cut_off.failure is not None
            # Given back as well: it survives any number of upgrades.
            assert (cut_off.state, cut_off.failure.cause) == (AttemptState.CANCELLED, Cause.AGENT_LOST)
            assert await agent.exit_code() == 0
            await until(lambda: not agent.members())
            await until(lambda: not spooled(agent))

    run(scene)


def test_sigterm_without_a_server_keeps_outcomes_on_disk(tmp_path: Path) -> None:
    async def scene() -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
            await server.start("wait_for", path=str(tmp_path / "gate"))
            await until((tmp_path / "gate.started").exists)
            await server.close()
            agent.popen.send_signal(signal.SIGTERM)
            (tmp_path / "gate").touch()
            assert await agent.exit_code() == 0
            assert len(spooled(agent)) == 1
            await until(lambda: not agent.members())

    run(scene)


def test_a_second_agent_in_one_folder_refuses(tmp_path: Path) -> None:
    async def scene() -> None:
        data_dir = make_data_dir(tmp_path / "data")
        with agent_process(data_dir) as first:
            await until(lambda: (data_dir / "agent.lock").exists() and (data_dir / "agent.lock").read_text())
            with agent_process(data_dir) as second:
                assert await second.exit_code() == 1
                assert f"pid {first.popen.pid}" in second.log()

    run(scene)
