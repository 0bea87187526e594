"""Whose fault the death of a worker process is, and what becomes of suspects."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.alive import alive
from tests.integration.agent.conftest import Shared, shared_fleet
from tests.integration.agent.fake_server import FakeServer, fleet, run, until

from dask_fleet.model.failure import Blame, Cause
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import Outcome

MIB = 1 << 20
LIMIT_MIB = 600
"""Far above what a worker process has with its libraries, little enough to be filled in a moment."""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Two worker processes with two threads, a memory limit, and little patience with functions that do not listen."""
    data = tmp_path_factory.mktemp("limited") / "data"
    yield from shared_fleet(data, nworkers=2, nthreads=2, timeout_grace_s=0.2, memory_limit=f"{LIMIT_MIB}MiB")


def calm(shared: Shared, scene: Callable[[FakeServer], Awaitable[None]], *, slots: int) -> None:
    """Play a scene once all processes are there: what the scene before has killed may still be on its way back."""

    async def whole(server: FakeServer) -> None:
        await until(lambda: server.ready[-1].slots == slots, what="all worker processes")
        await scene(server)

    shared.do(whole)


def lost(outcome: Outcome, cause: Cause, blame: Blame) -> str:
    """Check an end by death and return what is said of it."""
    assert outcome.failure is not None
    assert (outcome.state, outcome.failure.cause, outcome.blame) == (AttemptState.LOST, cause, blame)
    return outcome.failure.message


def pid_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0  # empty: made, and not written yet


async def started(server: FakeServer, endpoint: str, gate: Path, **more: object):  # type: ignore[no-untyped-def]
    """Start an attempt and return it with the pid of its process."""
    start = await server.start(endpoint, path=str(gate), **more)
    return start, await until(lambda: pid_in(gate.with_name(gate.name + ".started")), what=f"the start of {gate.name}")


class TestMemory:
    def test_too_much_is_killed_and_told_with_the_peak(self, limited: Shared) -> None:
        async def scene(server: FakeServer) -> None:
            outcome = await server.call("hoards", mib=100_000, pause_s=0.002)
            message = lost(outcome, Cause.MEMORY_LIMIT, Blame.ALONE)
            assert outcome.failure is not None
            assert outcome.failure.peak_bytes is not None
            assert outcome.failure.peak_bytes >= 0.95 * LIMIT_MIB * MIB
            assert f"of the {LIMIT_MIB} MiB" in message
            assert "--memory-limit" in message
            await until(lambda: server.ready[-1].slots == 4, what="its successor")
            assert await server.value("double", n=1) == 2

        calm(limited, scene, slots=4)

    def test_in_one_go(self, limited: Shared) -> None:
        """It is stopped on its way: nobody waits until all of it is there."""
        wanted = 6 * 1024

        async def scene(server: FakeServer) -> None:
            outcome = await server.call("hoards", mib=wanted, step_mib=wanted)
            lost(outcome, Cause.MEMORY_LIMIT, Blame.ALONE)
            assert outcome.failure is not None
            assert 0.95 * LIMIT_MIB * MIB <= (outcome.failure.peak_bytes or 0) < wanted * MIB

        calm(limited, scene, slots=4)

    def test_what_a_child_has_counts(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            start = await server.start("feeds_a_child", mib=6 * 1024, path=str(tmp_path / "pid"))
            child = psutil.Process(await until(lambda: pid_in(tmp_path / "pid"), what="the child"))
            outcome = await server.outcome(start)
            assert "it had with the process it had started" in lost(outcome, Cause.MEMORY_LIMIT, Blame.ALONE)
            assert outcome.failure is not None
            assert 0.95 * LIMIT_MIB * MIB <= (outcome.failure.peak_bytes or 0) < 6 * 1024 * MIB
            await until(lambda: not alive([child.pid]), timeout_s=10)

        calm(limited, scene, slots=4)

    def test_what_processes_share_counts_once(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            start, pid = await started(server, "forks", tmp_path / "gate", n=10)
            # Long enough that it has been weighed: nothing tells but the agent's looks, ten a second.
            family = psutil.Process(pid)
            looks = psutil.Process(limited.agent.popen.pid).num_ctx_switches()
            await until(
                lambda: sum(psutil.Process(limited.agent.popen.pid).num_ctx_switches()) > sum(looks) + 30, what="looks"
            )
            assert family.is_running()
            (tmp_path / "gate").touch()
            outcome = await server.outcome(start)
            assert outcome.state is AttemptState.SUCCEEDED
            assert int(outcome.body or b"0") > LIMIT_MIB * MIB  # else this would show nothing

        calm(limited, scene, slots=4)

    def test_what_is_below_the_limit_lives(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            start, pid = await started(server, "hoards", tmp_path / "gate", mib=160)
            assert psutil.Process(pid).memory_info().rss > 160 * MIB
            (tmp_path / "gate").touch()
            assert (await server.outcome(start)).state is AttemptState.SUCCEEDED

        calm(limited, scene, slots=4)

    def test_in_company_all_are_suspects(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            first, pid = await started(server, "wait_for", tmp_path / "a")
            other, elsewhere = await started(server, "wait_for", tmp_path / "b")
            assert pid != elsewhere
            hog = await server.start("hoards", mib=100_000, pause_s=0.002)  # to the one or the other
            lost(await server.outcome(hog), Cause.MEMORY_LIMIT, Blame.SHARED)
            ends = await until(lambda: [o for o in server.outcomes if o.seq in {first.seq, other.seq}])
            assert len(ends) == 1
            lost(ends[0], Cause.MEMORY_LIMIT, Blame.SHARED)
            for name in ("a", "b"):
                (tmp_path / name).touch()
            rest = first if ends[0].seq == other.seq else other
            assert (await server.outcome(rest)).state is AttemptState.SUCCEEDED

        calm(limited, scene, slots=4)

    def test_hello_tells_the_limit(self, limited: Shared) -> None:
        hello = limited.server.hellos[-1]
        assert (hello.memory_limit, hello.nworkers, hello.nthreads) == (LIMIT_MIB * MIB, 2, 2)


class TestStopped:
    def test_a_stopped_process_is_replaced(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            start, pid = await started(server, "wait_for", tmp_path / "gate")
            os.kill(pid, signal.SIGSTOP)
            message = lost(await server.outcome(start), Cause.STOPPED, Blame.ALONE)
            assert "SIGSTOP" in message
            await until(lambda: len(limited.agent.workers()) == 2)

        calm(limited, scene, slots=4)

    def test_a_moments_stop_is_none(self, limited: Shared, tmp_path: Path) -> None:
        """As of a profiler that takes a snapshot."""

        async def scene(server: FakeServer) -> None:
            start, pid = await started(server, "wait_for", tmp_path / "gate")
            for _ in range(3):
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGCONT)
            (tmp_path / "gate").touch()
            assert (await server.outcome(start)).state is AttemptState.SUCCEEDED

        calm(limited, scene, slots=4)

    def test_silence_alone_kills_nothing(self, limited: Shared, tmp_path: Path) -> None:
        """C code that keeps the interpreter answers nobody; only its time-out ends it."""

        async def scene(server: FakeServer) -> None:
            start = await server.start("keeps_the_interpreter", path=str(tmp_path / "it"), timeout_s=2.5)
            outcome = await server.outcome(start)
            assert outcome.failure is not None
            assert (outcome.state, outcome.failure.cause) == (AttemptState.FAILED, Cause.TIMEOUT)
            assert outcome.blame is Blame.ALONE  # it has cost the process

        calm(limited, scene, slots=4)

    def test_a_stopped_forkserver_is_replaced_with_its_processes(self, tmp_path: Path) -> None:
        async def scene() -> None:
            async with fleet(tmp_path / "data", nworkers=1) as (server, agent):
                start, pid = await started(server, "wait_for", tmp_path / "gate")
                forkserver = agent.forkserver()
                assert forkserver is not None
                os.kill(forkserver.pid, signal.SIGSTOP)
                lost(await server.outcome(start), Cause.WORKER_DIED, Blame.SHARED)
                await until(lambda: server.ready[-1].slots == 1, what="its successor")
                assert await server.value("pid") != pid

        run(scene)


class TestDeath:
    @pytest.mark.parametrize(("how", "said"), [("os._exit", "exit code 7"), ("segfault", "SIGSEGV"), ("kill", "SIGKILL")])
    def test_alone_it_is_charged(self, limited: Shared, how: str, said: str) -> None:
        async def scene(server: FakeServer) -> None:
            assert said in lost(await server.call("leaves", how=how), Cause.WORKER_DIED, Blame.ALONE)

        calm(limited, scene, slots=4)

    def test_exit_code_255_is_not_taken_for_a_dead_forkserver(self, limited: Shared) -> None:
        async def scene(server: FakeServer) -> None:
            assert "exit code 255" in lost(await server.call("leaves", how="255"), Cause.WORKER_DIED, Blame.ALONE)

        calm(limited, scene, slots=4)

    @pytest.mark.parametrize("how", ["kill", "segfault"])
    def test_in_company_all_are_suspects(self, tmp_path: Path, one_process: Shared, how: str) -> None:
        async def scene(server: FakeServer) -> None:
            neighbour, _ = await started(server, "wait_for", tmp_path / "gate")
            lost(await server.call("leaves", how=how), Cause.WORKER_DIED, Blame.SHARED)
            lost(await server.outcome(neighbour), Cause.WORKER_DIED, Blame.SHARED)

        calm(one_process, scene, slots=2)

    def test_beside_one_that_is_killed_nobody_is_charged(self, tmp_path: Path, one_process: Shared) -> None:
        async def scene(server: FakeServer) -> None:
            for number, kill in enumerate(("time-out", "cancel")):
                await until(lambda: server.ready[-1].slots == 2, what="the process")
                neighbour, _ = await started(server, "wait_for", tmp_path / f"gate{number}")
                path = tmp_path / f"deaf{number}"
                deaf = await server.start("deaf", path=str(path), timeout_s=0.3 if kill == "time-out" else 60.0)
                if kill == "cancel":
                    await until(path.with_name(path.name + ".started").exists)
                    await server.cancel(deaf, grace_s=0.0)
                outcome = await server.outcome(deaf)
                assert outcome.state is (AttemptState.FAILED if kill == "time-out" else AttemptState.CANCELLED)
                # That its user wanted it to end, and it did not listen, is nothing that one would be paused for.
                assert outcome.blame is (Blame.ALONE if kill == "time-out" else Blame.NONE)
                lost(await server.outcome(neighbour), Cause.WORKER_DIED, Blame.NONE)

        calm(one_process, scene, slots=2)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker process with two threads."""
    yield from shared_fleet(tmp_path_factory.mktemp("one") / "data", nworkers=1, nthreads=2, timeout_grace_s=0.2)


class TestSuspects:
    def test_a_suspect_has_a_process_that_nobody_else_had_or_has(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            shared = {w.pid for w in limited.agent.workers()}
            suspects = [server.make_start("wait_for", alone=True, path=str(tmp_path / f"s{i}")) for i in range(4)]
            await server.send(*suspects)
            ran: set[int] = set()
            for first, second in ((0, 1), (2, 3)):  # as many at once as there are worker processes
                for number in (first, second):
                    ran.add(await until(lambda n=number: pid_in(tmp_path / f"s{n}.started")))  # type: ignore[misc]
                assert not (tmp_path / f"s{second + 1}.started").exists()
                assert await server.value("pid") in shared  # others go on where they are
                assert server.ready[-1].slots == 4
                for number in (first, second):
                    (tmp_path / f"s{number}").touch()
            for suspect in suspects:
                assert (await server.outcome(suspect)).state is AttemptState.SUCCEEDED
            assert len(ran) == 4
            assert not ran & shared
            await until(lambda: {w.pid for w in limited.agent.workers()} == shared, what="their end")

        calm(limited, scene, slots=4)

    def test_its_death_is_its_own(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            neighbour, pid = await started(server, "wait_for", tmp_path / "gate")
            for how in ("kill", "segfault", "os._exit"):
                lost(await server.call("leaves", alone=True, how=how), Cause.WORKER_DIED, Blame.ALONE)
            (tmp_path / "gate").touch()
            assert (await server.outcome(neighbour)).state is AttemptState.SUCCEEDED
            assert pid in {w.pid for w in limited.agent.workers()}

        calm(limited, scene, slots=4)

    def test_one_that_waits_can_be_cancelled(self, limited: Shared, tmp_path: Path) -> None:
        async def scene(server: FakeServer) -> None:
            suspects = [server.make_start("wait_for", alone=True, path=str(tmp_path / f"s{i}")) for i in range(3)]
            await server.send(*suspects)
            for number in range(2):
                await until(lambda n=number: pid_in(tmp_path / f"s{n}.started"))  # type: ignore[misc]
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > 0.3)  # longer than others wait before they are given back
            assert suspects[2].seq not in {o.seq for o in server.outcomes}
            await server.cancel(suspects[2])
            assert (await server.outcome(suspects[2])).state is AttemptState.CANCELLED
            for number in range(2):
                (tmp_path / f"s{number}").touch()
                assert (await server.outcome(suspects[number])).state is AttemptState.SUCCEEDED

        calm(limited, scene, slots=4)
