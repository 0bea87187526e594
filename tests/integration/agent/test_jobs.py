"""What a worker process does with one attempt: call, encode, fail, report."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from tests.integration.agent.conftest import Shared
from tests.integration.agent.fake_server import until

from dask_fleet.agent.worker_environment import WORKER_ENVIRONMENT
from dask_fleet.model.failure import Cause
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import SPOOL_ABOVE_BYTES


def test_a_result_travels_with_its_digest(one_thread: Shared) -> None:
    outcome = one_thread.do(lambda server: server.call("double", n=21))
    assert outcome.state is AttemptState.SUCCEEDED
    assert outcome.body == b"42"
    assert outcome.media_type == "application/json"
    assert outcome.size == 2
    assert outcome.digest == hashlib.sha256(b"42").hexdigest()
    assert outcome.worker.startswith("local-")


def test_async_functions_run_side_by_side_on_one_thread(two_threads: Shared, tmp_path: Path) -> None:
    async def meeting(server):
        a = await server.start("meet", folder=str(tmp_path), me="a", other="b")
        b = await server.start("meet", folder=str(tmp_path), me="b", other="a")
        return [(await server.outcome(x)).state for x in (a, b)]

    assert two_threads.do(meeting) == [AttemptState.SUCCEEDED] * 2
    assert two_threads.do(lambda server: server.value("later", n=1)) == 2


def test_a_raised_exception_is_told_with_the_frames_of_its_author(one_thread: Shared) -> None:
    failure = one_thread.do(lambda server: server.call("raises", text="no such carrier")).failure
    assert failure.cause is Cause.EXCEPTION
    assert failure.type == "ValueError"
    assert failure.message == "no such carrier"
    assert "service_trial.py" in failure.traceback
    assert "dask_fleet/agent" not in failure.traceback


@pytest.mark.parametrize(("how", "kind"), [("sys.exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")])
def test_leaving_the_interpreter_ends_the_job_not_the_process(one_thread: Shared, how: str, kind: str) -> None:
    before = one_thread.do(lambda server: server.value("pid"))
    outcome = one_thread.do(lambda server: server.call("leaves", how=how))
    assert (outcome.state, outcome.failure.cause, outcome.failure.type) == (AttemptState.FAILED, Cause.EXCEPTION, kind)
    assert one_thread.do(lambda server: server.value("pid")) == before


def test_parameters_that_do_not_fit_are_named(one_thread: Shared) -> None:
    failure = one_thread.do(lambda server: server.call("double", n="many")).failure
    assert failure.cause is Cause.INVALID_PARAMETERS
    assert failure.errors[0]["loc"] == ["n"]


def test_what_cannot_be_stored_names_its_type(one_thread: Shared) -> None:
    failure = one_thread.do(lambda server: server.call("unserialisable")).failure
    assert failure.cause is Cause.RESULT_NOT_SERIALIZABLE
    assert "lock" in failure.message


def test_a_collection_that_cannot_tell_its_graph_fails(one_thread: Shared) -> None:
    failure = one_thread.do(lambda server: server.call("ungraphable")).failure
    assert (failure.cause, failure.message) == (Cause.EXCEPTION, "no graph today")


def test_a_large_result_goes_to_the_spool(one_thread: Shared) -> None:
    size = SPOOL_ABOVE_BYTES + 1
    outcome = one_thread.do(lambda server: server.call("large", size=size))
    assert outcome.body is None
    path = one_thread.agent.data_dir / "spool" / outcome.spool
    assert path.stat().st_size == outcome.size == size
    assert path.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(path.read_bytes()).hexdigest() == outcome.digest


def test_a_result_at_the_border_travels_inline(one_thread: Shared) -> None:
    outcome = one_thread.do(lambda server: server.call("large", size=SPOOL_ABOVE_BYTES))
    assert len(outcome.body) == SPOOL_ABOVE_BYTES
    assert outcome.spool is None


def test_a_result_over_max_result_is_refused(one_thread: Shared) -> None:
    outcome = one_thread.do(lambda server: server.call("large", size=1001, limit=1000))
    assert outcome.failure.cause is Cause.RESULT_TOO_LARGE
    assert "max_result" in outcome.failure.message
    assert one_thread.do(lambda server: server.call("large", size=1000, limit=1000)).state is AttemptState.SUCCEEDED


def test_a_version_that_is_not_loaded_is_refused(one_thread: Shared) -> None:
    import msgspec

    async def other_version(server):
        start = msgspec.structs.replace(server.make_start("double", n=1), version="other")
        await server.send(start)
        return await server.outcome(start)

    outcome = one_thread.do(other_version)
    assert outcome.failure.cause is Cause.SERVICE_UNAVAILABLE
    assert "version other" in outcome.failure.message


def test_progress_is_reported(one_thread: Shared) -> None:
    async def reports(server):
        start = await server.start("reports")
        await server.outcome(start)
        return [(p.done, p.total, p.text) for p in server.progress if p.seq == start.seq]

    assert one_thread.do(reports)[-1] == (2.0, 2.0, "whole")


def test_workers_see_neither_token_nor_stdin(one_thread: Shared) -> None:
    assert one_thread.do(lambda server: server.value("environment")) == {"token": False, "stdin": True}


def test_libraries_start_no_threads_of_their_own_and_freed_memory_is_given_back(one_thread: Shared) -> None:
    names = sorted(WORKER_ENVIRONMENT)
    found = one_thread.do(lambda server: server.value("variables", names=names))
    assert found == {name: os.environ.get(name, WORKER_ENVIRONMENT[name]) for name in names}


def test_a_few_attempts_more_than_slots_wait_their_turn(one_thread: Shared) -> None:
    async def many(server):
        starts = [server.make_start("double", n=n) for n in range(20)]
        await server.send(*starts)
        outcomes = [await server.outcome(start) for start in starts]
        # On a host that stands still for a moment, the last ones may have gone back.
        return [json.loads(o.body) for o in outcomes if o.state is not AttemptState.CANCELLED]

    values = one_thread.do(many)
    assert len(values) > 1
    assert values == [2 * n for n in range(len(values))]


def test_what_waits_behind_a_long_attempt_is_given_back(one_thread: Shared, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def scene(server):
        first = await server.start("wait_for", path=str(gate))
        given_back = await server.call("double", n=1)
        gate.touch()
        return given_back, await server.outcome(first)

    given_back, first = one_thread.do(scene)
    assert (given_back.state, given_back.failure) == (AttemptState.CANCELLED, None)
    assert first.state is AttemptState.SUCCEEDED


class TestCancel:
    def test_a_function_that_asks_ends_as_cancelled_though_it_returns(self, one_thread: Shared, tmp_path: Path) -> None:
        path = tmp_path / "it"

        async def scene(server):
            start = await server.start("wait_until_cancelled", path=str(path))
            await until(lambda: Path(f"{path}.started").exists())
            await server.cancel(start)
            return await server.outcome(start)

        assert one_thread.do(scene).state is AttemptState.CANCELLED
        assert Path(f"{path}.cancelled").exists()

    def test_a_coroutine_is_cancelled(self, one_thread: Shared) -> None:
        async def scene(server):
            start = await server.start("await_for_ever")
            await server.cancel(start)
            return await server.outcome(start)

        assert one_thread.do(scene).state is AttemptState.CANCELLED

    def test_what_has_not_begun_is_cancelled_at_once(self, one_thread: Shared, tmp_path: Path) -> None:
        gate = tmp_path / "gate"

        async def scene(server):
            first = await server.start("wait_for", path=str(gate))
            second = await server.start("double", n=1)
            await server.cancel(second)
            cancelled = await server.outcome(second)
            gate.touch()
            return cancelled, await server.outcome(first)

        cancelled, first = one_thread.do(scene)
        assert cancelled.state is AttemptState.CANCELLED
        assert first.state is AttemptState.SUCCEEDED

    def test_an_unknown_attempt_is_lost(self, one_thread: Shared) -> None:
        async def scene(server):
            start = server.make_start("double", n=1)
            await server.cancel(start)
            return await server.outcome(start)

        assert one_thread.do(scene).state is AttemptState.LOST
