"""Jobs with Dask clusters of their own, on a real worker process, real schedulers and real Dask workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agent.conftest import on_a_loop
from tests.integration.agent.drivers_rig import PATIENCE_S, Drivers, drivers, member_pids
from tests.integration.agent.fake_server import until

from dask_fleet.model.failure import Blame, Cause
from dask_fleet.model.states import AttemptState

Do = Callable[[Callable[[Drivers], Awaitable[Any]]], Any]


@pytest.fixture(scope="module")
def do(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Do]:
    """Runs a scene with a worker process of two places, shared by the tests that only call functions."""
    with on_a_loop(drivers(tmp_path_factory.mktemp("drivers"))) as run:
        yield run


# ---------------------------------------------------------------- where a graph runs


def test_a_small_graph_stays_on_its_worker_process(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        before = len(rig.needs)
        assert await rig.value("pids", n=49) == [rig.process.pid]
        assert await rig.value("computes", n=50) == [rig.process.pid]
        assert await rig.value("persists", n=100) == {"futures": 0, "pids": [rig.process.pid]}
        assert len(rig.needs) == before

    do(scene)


def test_a_large_graph_gets_a_cluster(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        start = await rig.start("pids", n=50)
        outcome = await rig.outcome(start)
        assert outcome.failure is None, outcome.failure
        assert set(json.loads(outcome.body)) <= member_pids(rig)
        need = await rig.need(start)
        assert (need.tasks, need.width) == (51, 50)
        assert (need.n_workers, need.threads_per_worker, need.resources) == (None, None, {})

    do(scene)


def test_the_author_forces_a_cluster_and_says_its_size(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        start = await rig.start("pids_on_cluster", n=2)
        outcome = await rig.outcome(start)
        assert outcome.failure is None, outcome.failure
        assert set(json.loads(outcome.body)) <= member_pids(rig)
        need = await rig.need(start)
        assert (need.n_workers, need.threads_per_worker, need.resources) == (2, 1, {"GPU": 1.0})
        assert set(await rig.value("computes_on_cluster", n=2)) <= member_pids(rig)

    do(scene)


def test_the_author_forbids_a_cluster(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        before = len(rig.needs)
        assert await rig.value("pids_on_worker", n=3000) == [rig.process.pid]
        failure = (await rig.call("forbidden")).failure
        assert failure is not None
        assert failure.cause is Cause.EXCEPTION
        assert "placement='worker'" in failure.message
        assert len(rig.needs) == before

    do(scene)


def test_a_plain_compute_of_a_large_graph_gets_a_cluster(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        assert set(await rig.value("computes", n=80)) <= member_pids(rig)
        persisted = await rig.value("persists", n=1000)
        assert persisted["futures"] == 100
        assert set(persisted["pids"]) <= member_pids(rig)

    do(scene)


@pytest.mark.parametrize(("kind", "value"), [("array", 300.0), ("shuffle", 2000), ("bag", 500_500), ("delayed", 4950)])
def test_every_kind_of_collection(do: Do, kind: str, value: float) -> None:
    async def scene(rig: Drivers) -> None:
        before = len(rig.needs)
        assert await rig.value("frames", kind=kind) == value
        assert len(rig.needs) == before + 1

    do(scene)


def test_a_graph_on_a_cluster_reports_progress(do: Do, tmp_path: Path) -> None:
    async def scene(rig: Drivers) -> None:
        start = await rig.start("graph_slowly", path=str(tmp_path / "go"))
        await until(lambda: any(p.seq == start.seq and p.total == 21 and p.text == "tasks" for p in rig.progress))
        (tmp_path / "go").touch()
        assert (await rig.outcome(start)).failure is None

    do(scene)


# ---------------------------------------------------------------- get_client


def test_a_function_gets_a_client_of_its_own(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        found = await rig.value("client_of_its_own")
        assert found["same"]
        assert found["default"]
        assert set(found["submitted"]) <= member_pids(rig)
        assert set(found["plain"]) <= member_pids(rig)
        assert found["mine"] == rig.process.pid

    do(scene)


def test_a_coroutine_gets_a_client_of_its_own(do: Do) -> None:
    assert do(lambda rig: rig.value("client_in_a_coroutine", n=10)) == 45


def test_a_function_may_close_its_client_and_ask_again(do: Do) -> None:
    assert do(lambda rig: rig.value("closes_its_client")) == 3


def test_clients_within_tasks(do: Do) -> None:
    found = do(lambda rig: rig.value("inside_tasks"))
    assert found == {"name": found["name"], "values": [2, 3, 4]}
    assert found["name"] in {"0", "1"}


def test_twenty_drivers_on_two_places(do: Do) -> None:
    """None of them holds a place while it waits: all are waiting at once, and a plain job gets through."""

    async def scene(rig: Drivers) -> None:
        rig.gives = False
        try:
            starts = [await rig.start("drives", n=5) for _ in range(20)]
            needs = [await rig.need(start) for start in starts]
            assert await rig.value("double", n=4) == 8
            for need in needs:
                await rig.give(need)
        finally:
            rig.gives = True
        for start in starts:
            outcome = await rig.outcome(start)
            assert outcome.failure is None, outcome.failure
            assert outcome.body == b"20"

    do(scene)


def test_a_function_may_ask_on_an_event_loop_of_its_own_and_from_threads(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        before = len(rig.needs)
        for endpoint in ("drives_on_a_loop", "drives_from_threads", "computes_in_threads"):
            assert await rig.value(endpoint, n=10) == 90, endpoint
        assert len(rig.needs) == before + 3

    do(scene)


# ---------------------------------------------------------------- ends


def test_an_exception_of_a_task_is_the_jobs(do: Do) -> None:
    async def scene(rig: Drivers) -> None:
        outcome = await rig.call("graph_that_raises")
        assert outcome.state is AttemptState.FAILED
        assert outcome.failure is not None
        assert (outcome.failure.cause, outcome.failure.type) == (Cause.EXCEPTION, "LookupError")

    do(scene)


@pytest.mark.parametrize("endpoint", ["graph_slowly", "compute_slowly"])
def test_no_cluster_to_be_had(do: Do, tmp_path: Path, endpoint: str) -> None:
    async def scene(rig: Drivers) -> None:
        rig.gives = False
        try:
            start = await rig.start(endpoint, path=str(tmp_path / "never"))
            rig.answer(await rig.need(start), why="the pool has 2 slots, each worker is to have 8 threads")
            outcome = await rig.outcome(start)
        finally:
            rig.gives = True
        assert outcome.state is AttemptState.FAILED
        assert outcome.failure is not None
        assert outcome.failure.cause is Cause.CLUSTER_UNAVAILABLE
        assert "2 slots" in outcome.failure.message

    do(scene)


@pytest.mark.parametrize("endpoint", ["graph_slowly", "compute_slowly"])
def test_the_death_of_the_scheduler_is_no_fault_of_the_job(do: Do, tmp_path: Path, endpoint: str) -> None:
    async def scene(rig: Drivers) -> None:
        innocent = await rig.start("compute_slowly", path=str(tmp_path / "innocent"))
        await until((tmp_path / "innocent.started").exists, what="a task")
        start = await rig.start(endpoint, path=str(tmp_path / "go"))
        await until((tmp_path / "go.started").exists, what="a task")
        (await rig.given_to(start)).scheduler.kill()
        outcome = await rig.outcome(start)
        assert outcome.state is AttemptState.LOST
        assert outcome.failure is not None
        assert outcome.failure.cause is Cause.CLUSTER_LOST
        assert outcome.blame is Blame.NONE
        (tmp_path / "go").touch()
        (tmp_path / "innocent").touch()
        assert (await rig.outcome(innocent)).failure is None

    do(scene)


@pytest.mark.parametrize("endpoint", ["graph_slowly", "compute_slowly"])
def test_the_fleet_says_that_the_cluster_is_lost(do: Do, tmp_path: Path, endpoint: str) -> None:
    """As when the host of its scheduler is gone without a word."""

    async def scene(rig: Drivers) -> None:
        start = await rig.start(endpoint, path=str(tmp_path / "go"))
        await until((tmp_path / "go.started").exists, what="a task")
        rig.answer(await rig.need(start), why="its host is gone")
        outcome = await rig.outcome(start)
        (tmp_path / "go").touch()
        assert outcome.state is AttemptState.LOST
        assert outcome.failure is not None
        assert "its host is gone" in outcome.failure.message

    do(scene)


@pytest.mark.parametrize("gives", [True, False])
@pytest.mark.parametrize("endpoint", ["graph_slowly", "compute_slowly"])
def test_cancelling(do: Do, tmp_path: Path, endpoint: str, gives: bool) -> None:
    """While it waits for its cluster, and while that computes."""

    async def scene(rig: Drivers) -> None:
        rig.gives = gives
        try:
            start = await rig.start(endpoint, path=str(tmp_path / "go"))
            await rig.need(start)
            if gives:
                await until((tmp_path / "go.started").exists, what="a task")
            rig.cancel(start)
            outcome = await rig.outcome(start)
        finally:
            rig.gives = True
        (tmp_path / "go").touch()
        assert outcome.state in {AttemptState.CANCELLED, AttemptState.FAILED}  # the agent calls both cancelled

    do(scene)


def test_nothing_is_left_behind(do: Do) -> None:
    """Neither threads nor descriptors grow with the jobs that had a cluster."""

    async def scene(rig: Drivers) -> None:
        import psutil

        process = psutil.Process(rig.process.pid)

        async def use(times: int) -> tuple[int, int]:
            for _ in range(times):
                assert await rig.value("drives", n=2) == 2
                assert await rig.value("drives_on_a_loop", n=2) == 2
                assert (await rig.call("pids", n=50)).failure is None
            return process.num_fds(), process.num_threads()

        fds, threads = await use(4)
        await use(10)
        with contextlib.suppress(AssertionError):  # what has just ended may still be closing
            await until(
                lambda: process.num_fds() <= fds + 1 and process.num_threads() <= threads + 1, timeout_s=PATIENCE_S / 3
            )
        assert process.num_fds() <= fds + 1
        assert process.num_threads() <= threads + 1

    do(scene)


def test_a_blocked_coroutine_stops_no_client(do: Do, tmp_path: Path) -> None:
    async def scene(rig: Drivers) -> None:
        sleeping = await rig.start("sleeps", path=str(tmp_path / "wake"))
        assert await rig.value("drives", n=3) == 6
        (tmp_path / "wake").touch()
        assert (await rig.outcome(sleeping)).failure is None
        await asyncio.sleep(0)

    do(scene)
