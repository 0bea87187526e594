"""Dask inside a job: on the worker process's own pool, without deadlock, without meeting another job's client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.integration.agent.conftest import Shared

from dask_fleet.model.failure import Cause


def total(n: int) -> int:
    return n * (n - 1) // 2


@pytest.mark.parametrize("endpoint", ["computes", "persists", "graph"])
def test_one_thread_is_enough(one_thread: Shared, endpoint: str) -> None:
    assert one_thread.do(lambda server: server.value(endpoint, n=1000)) == total(1000)


@pytest.mark.parametrize("endpoint", ["computes", "graph"])
def test_two_jobs_on_two_threads(two_threads: Shared, endpoint: str) -> None:
    async def both(server):
        values = []
        for pair in ((1000, 2000), (3000, 4000)):  # no more than there are places: what waits long is given back
            starts = [server.make_start(endpoint, n=n) for n in pair]
            await server.send(*starts)
            values += [int((await server.outcome(start)).body) for start in starts]
        return values

    assert two_threads.do(both) == [total(n) for n in (1000, 2000, 3000, 4000)]


@pytest.mark.parametrize("fixture", ["one_thread", "two_threads"])
def test_a_task_may_compute_again(request: pytest.FixtureRequest, fixture: str) -> None:
    shared = request.getfixturevalue(fixture)
    assert shared.do(lambda server: server.value("computes_nested", n=4)) == 12


@pytest.mark.parametrize(("fixture", "most"), [("one_thread", 1), ("two_threads", 2)])
def test_no_more_tasks_run_at_once_than_there_are_places(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, most: int
) -> None:
    shared = request.getfixturevalue(fixture)
    assert shared.do(lambda server: server.value("tasks_at_once", folder=str(tmp_path), n=24)) == most


def test_the_pool_is_whole_after_many_graphs(one_thread: Shared, tmp_path: Path) -> None:
    """Each compute leaves its place and comes back: none is lost, none is added."""

    async def scene(server):
        for _ in range(10):
            await server.value("computes_nested", n=2)
        return await server.value("tasks_at_once", folder=str(tmp_path), n=12)

    assert one_thread.do(scene) == 1


def test_a_graph_reports_its_own_progress(one_thread: Shared) -> None:
    async def scene(server):
        start = await server.start("graph", n=800)
        await server.outcome(start)
        return [p for p in server.progress if p.seq == start.seq]

    last = one_thread.do(scene)[-1]
    assert last.total > 1
    assert last.done == last.total


def test_an_exception_inside_a_graph_is_the_jobs(one_thread: Shared) -> None:
    failure = one_thread.do(lambda server: server.call("graph_that_raises")).failure
    assert (failure.cause, failure.type, failure.message) == (Cause.EXCEPTION, "LookupError", "inside the graph")


def test_an_explicit_scheduler_is_respected(one_thread: Shared) -> None:
    names = one_thread.do(lambda server: server.value("scheduler_threads"))
    assert all(name.startswith("job-") for name in names)
    names = one_thread.do(lambda server: server.value("scheduler_threads", scheduler="threads"))
    assert all(name.startswith(("ContextAware", "ThreadPool")) for name in names)


def test_a_job_never_meets_the_client_of_another(two_threads: Shared, tmp_path: Path) -> None:
    made, looked = str(tmp_path / "made"), str(tmp_path / "looked")

    async def scene(server):
        owner = await server.start("own_client", path=made, other=looked)
        stranger = await server.start("no_client", path=looked, other=made)
        return [await server.outcome(start) for start in (owner, stranger)]

    owner, stranger = two_threads.do(scene)
    assert owner.failure is None, owner.failure
    assert stranger.failure is None, stranger.failure
    owner, stranger = json.loads(owner.body), json.loads(stranger.body)
    assert owner["mine"] is True
    assert owner["kept"] == 5
    assert not owner["thread"].startswith("job-")  # computed by its own cluster
    assert stranger["found"] is False
    assert stranger["thread"].startswith("job-")
    assert stranger["free_thread"].startswith("job-")
    # And nothing of it is left for the next one.
    assert two_threads.do(lambda server: server.value("computes", n=100)) == total(100)
