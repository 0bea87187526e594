"""The SDK over a real socket, against a stand-in server."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from dask_fleet import AsyncClient, Client, as_completed
from dask_fleet.client import batch
from dask_fleet.client.job import Job
from dask_fleet.model.errors import (
    CapacityError,
    Conflict,
    ConnectionFailed,
    InvalidParameters,
    JobCancelled,
    JobExpired,
    JobFailed,
    NotFound,
    QueueFull,
    Unauthorized,
    WaitTimeout,
)


@pytest.fixture
def client(stub: Any) -> Any:
    with Client(patience_s=5) as client:
        yield client


def test_a_call_reads_like_a_function(client: Client, stub: Any) -> None:
    job = client.math.fibonacci(10)
    assert job.result() == 55
    assert job.status == "succeeded"
    assert client.math.fibonacci(n=90, base=2).result() == 2880067194370816120  # beyond what a double holds
    assert json.loads(stub.requests[-1][3]) == {"n": 90, "base": 2}
    assert job.job_id in repr(job)
    assert "math.fibonacci(n=10)" in repr(job)


def test_an_endpoint_shows_what_its_author_wrote(client: Client) -> None:
    fibonacci = client.math.fibonacci
    assert fibonacci.__doc__ == "The n-th Fibonacci number."
    assert str(inspect.signature(fibonacci)) == "(n: int, base: float = 1.0, origin: 'EWR' | 'JFK' | None = None) -> json"
    assert {"math", "submit", "map"} <= set(dir(client))
    assert "fibonacci" in dir(client.math)


def test_unknown_names_say_what_there_is(client: Client) -> None:
    with pytest.raises(AttributeError, match=r"no service 'maths'; there is: math\. Did you mean 'math'\?"):
        client.maths  # noqa: B018
    with pytest.raises(AttributeError, match=r"no endpoint 'fibonaci'; there is: fail, fibonacci.*Did you mean 'fibonacci'"):
        client.math.fibonaci  # noqa: B018
    with pytest.raises(NotFound):
        client.submit("math", "nothing", {})
    assert not hasattr(client, "_repr_png_")


def test_arguments_are_bound_as_python_binds_them(client: Client) -> None:
    with pytest.raises(TypeError, match="takes 3 positional arguments but 4 were given"):
        client.math.fibonacci(1, 2, "JFK", 4)
    with pytest.raises(TypeError, match="multiple values for argument 'n'"):
        client.math.fibonacci(1, n=1)
    with pytest.raises(InvalidParameters) as caught:
        client.math.fibonacci("x")
    assert caught.value.extra["errors"] == [{"loc": ["n"], "msg": "Field required"}]


def test_options_travel_beside_the_parameters(client: Client, stub: Any) -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    call = client.math.fibonacci.options(priority=5, tags=["a", "b"], deadline=noon, wait=2.1, refresh=True)
    assert call(3).result() == 2
    _, path, headers, body = next(request for request in stub.requests if request[0] == "POST")
    assert path == "/v1/math/fibonacci?refresh=true"
    assert json.loads(body) == {"n": 3}
    assert headers["fleet-priority"] == "5"
    assert headers["fleet-tags"] == "a,b"
    assert headers["fleet-deadline"] == "2030-01-01T12:00:00+00:00"
    assert headers["prefer"] == "wait=3"
    assert "idempotency-key" in headers
    client.submit("math", "fibonacci", {"n": 4}, deadline=timedelta(minutes=1))
    assert stub.requests[-1][2]["fleet-deadline"] == "60.000"
    assert "idempotency-key" not in stub.requests[-1][2]
    with pytest.raises(ValueError, match="needs a zone"):
        client.submit("math", "fibonacci", {"n": 4}, deadline=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="priority must be from"):
        client.submit("math", "fibonacci", {"n": 4}, priority=1000)
    with pytest.raises(TypeError, match="colour"):
        client.math.fibonacci.options(colour="red")


def test_a_call_that_is_not_pure_is_one_job_even_if_the_answer_is_lost(client: Client, stub: Any) -> None:
    client.services()
    stub.faults.append("drop")
    client.math.roll(1)
    first, second = stub.sent("POST", "/v1/math/roll")
    assert first["idempotency-key"] == second["idempotency-key"]
    client.math.roll(1)
    assert len(stub.jobs) == 2


def test_a_failure_is_raised_with_its_story(client: Client) -> None:
    job = client.math.fail(1)
    with pytest.raises(JobFailed, match=r"math\.fail failed \(exception\): ValueError: no luck") as caught:
        job.result()
    assert caught.value.failure is not None
    assert caught.value.failure["cause"] == "exception"
    assert "line 7" in caught.value.__notes__[0]
    assert "ValueError" in job._repr_html_()
    with pytest.raises(JobFailed):
        client.gather([client.math.fibonacci(1), job])


def test_the_other_ends_of_a_job(client: Client, stub: Any) -> None:
    job = client.math.slow(1)
    assert not job.done
    assert job.cancel() == "cancelled"
    with pytest.raises(JobCancelled):
        job.result()
    assert job.retry() == "queued"
    assert job.document["run"] == 2
    stub.finish(job.job_id, "expired")
    assert job.refresh_status() == "expired"
    with pytest.raises(JobExpired):
        job.result()
    with pytest.raises(Conflict):
        client.math.fibonacci(1).retry()
    assert job.attempts() == [{"attempt": 1}]


def test_waiting_ends_with_the_job_or_with_the_time_given(client: Client, stub: Any) -> None:
    job = client.math.slow(2)
    with pytest.raises(WaitTimeout, match=r"queued after 0\.05 s; it goes on"):
        job.result(timeout=0.05)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.wait)
        stub.finish(job.job_id, result=None, result_size=4, result_media_type="application/json")
        assert waiting.result(5) == "succeeded"
    assert job.result() is None


def test_the_stored_form_is_fetched_and_decoded(client: Client, stub: Any, tmp_path: Path) -> None:
    job = client.math.words(1)
    text = "a text of some length" * 10
    assert job.result() == text
    assert stub.requests[-1][2]["accept"] == "text/plain"
    assert job.save(tmp_path / "out.txt") == 210
    assert (tmp_path / "out.txt").read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]


def test_a_broken_download_is_resumed_where_it_broke(client: Client, stub: Any, tmp_path: Path) -> None:
    job = client.math.words(2)
    stub.faults.append(b"a text of")
    assert job.save(tmp_path / "out") == 210
    assert (tmp_path / "out").read_bytes() == b"a text of some length" * 10
    resumed = stub.requests[-1][2]
    assert (resumed["range"], resumed["if-range"]) == ("bytes=9-", '"abc"')


def test_a_form_without_ranges_is_read_again_and_its_beginning_dropped(client: Client, stub: Any, tmp_path: Path) -> None:
    job = client.math.words(4)
    stub.ranges = False
    stub.faults.append(b"a text of")
    assert job.save(tmp_path / "out") == 210
    assert (tmp_path / "out").read_bytes() == b"a text of some length" * 10


def test_a_download_that_cannot_be_resumed_leaves_no_half_file(client: Client, stub: Any, tmp_path: Path) -> None:
    job = client.math.words(3)
    stub.faults.append("drop")  # without an ETag nobody knows whether the rest belongs to the beginning
    with pytest.raises(ConnectionFailed):
        job.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_events_are_resumed_where_the_stream_broke(client: Client, stub: Any) -> None:
    job = client.math.slow(3)
    stub.loop.call_soon_threadsafe(stub.note, job.job_id, "started")
    stub.loop.call_soon_threadsafe(stub.note, job.job_id, "progress", {"done": 1, "total": 4, "text": "reading"})
    stub.finish(job.job_id)
    stub.break_stream_after = 2
    events = list(job.events())
    assert [event.kind for event in events] == ["accepted", "started", "progress", "succeeded"]
    assert events[2].data == {"done": 1, "total": 4, "text": "reading"}
    assert [event.event_id for event in events] == [1, 2, None, 3]
    resumed = stub.sent("GET", f"/v1/jobs/{job.job_id}/events")[1]
    assert resumed["last-event-id"] == "2"


def test_whoever_has_seen_all_events_is_told_none(client: Client, stub: Any) -> None:
    job = client.math.slow(30)
    stub.finish(job.job_id)
    assert [event.event_id for event in job.events(after=1)] == [2]
    assert list(job.events(after=2)) == []
    assert len(stub.sent("GET", f"/v1/jobs/{job.job_id}/events")) == 2


def test_what_comes_after_the_end_does_not_undo_it(client: Client, stub: Any) -> None:
    job = client.math.slow(31)
    stub.finish(job.job_id)
    stub.loop.call_soon_threadsafe(stub.note, job.job_id, "log", {"stream": "stdout", "offset": 0, "text": "late"})
    assert job.refresh_status() == "succeeded"  # by now the stub has noted it
    assert [event.kind for event in job.events(logs=True)] == ["accepted", "succeeded", "log"]
    assert len(stub.sent("GET", f"/v1/jobs/{job.job_id}/events")) == 1


def test_an_event_loop_that_is_left_early_leaves_nothing(client: Client, stub: Any) -> None:
    job = client.math.slow(4)
    events = job.events()
    assert next(events).kind == "accepted"
    events.close()  # type: ignore[attr-defined]
    assert client.math.fibonacci(1).result() == 1


def test_progress_is_reported_in_the_callers_thread(client: Client, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    class Recorder:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, *told: Any) -> None:
            seen.append((threading.current_thread(), *told))
            if len(seen) == 1:
                stub.finish(job.job_id, result=7, result_size=1, result_media_type="application/json")

    monkeypatch.setattr("dask_fleet.client.bars.open_bar", lambda title: Recorder())
    job = client.math.slow(5)
    stub.loop.call_soon_threadsafe(stub.note, job.job_id, "progress", {"done": 1, "total": 4, "text": "reading"})
    assert job.result(progress=True, timeout=10) == 7
    assert seen == [(threading.current_thread(), 1.0, 4.0, "reading")]
    seen.clear()
    assert client.gather([client.math.fibonacci(n) for n in range(3)], progress=True) == [0, 1, 1]
    assert [told[1:3] for told in seen][-1] == (3, 3)


def test_map_keeps_the_order_and_shares_parameters(client: Client, stub: Any) -> None:
    jobs = client.map(client.math.fibonacci.options(tags="batch"), range(40), base=2.0)
    assert client.gather(jobs) == [job.result() for job in jobs]
    assert jobs[10].result() == 55
    assert stub.jobs["fibonacci7"]["params"] == {"n": 7, "base": 2.0}
    assert stub.jobs["fibonacci7"]["tags"] == ["batch"]
    mixed = client.map("math.fibonacci", [{"n": 1}, (2, 3.0), 5])
    assert [job.document["params"] for job in mixed] == [{"n": 1}, {"n": 2, "base": 3.0}, {"n": 5}]
    assert repr(mixed[1]) == "<Job math.fibonacci(n=2, base=3.0) succeeded fibonacci2>"
    with pytest.raises(InvalidParameters):
        client.map("math.fibonacci", [1, "x", 3])
    with pytest.raises(ValueError, match=r"service\.endpoint"):
        client.map("fibonacci", [1])


def test_map_sends_a_thousand_in_a_request(client: Client, stub: Any) -> None:
    jobs = client.map("math.fibonacci", (n % 50 for n in range(2500)))
    assert [job.job_id for job in jobs[2490:]] == [f"fibonacci{n % 50}" for n in range(2490, 2500)]
    sent = [body.count(b"\n") + 1 for _, path, _, body in stub.requests if path.endswith("fibonacci:batch")]
    assert sorted(sent) == [500, 1000, 1000]
    assert client.map("math.fibonacci", []) == []
    assert client.map(client.math.fibonacci.options(wait=1), [1, 2])[1].document["run"] == 1  # with waiting, one by one


def test_a_part_is_full_by_its_bytes_as_well(monkeypatch: pytest.MonkeyPatch, client: Client, stub: Any) -> None:
    monkeypatch.setattr(batch, "BYTES_A_REQUEST", 100)
    assert len(client.map("math.fibonacci", range(1000, 1040))) == 40
    bodies = [body for _, path, _, body in stub.requests if path.endswith("fibonacci:batch")]
    assert [body.count(b"\n") + 1 for body in bodies] == [10, 10, 10, 10]


def test_what_is_refused_is_told_in_its_place(client: Client, stub: Any) -> None:
    first, refused, last = client.submit_batch("math.fibonacci", [1, {"n": "x"}, 3])
    assert isinstance(refused, InvalidParameters)
    assert refused.extra["errors"][0]["loc"] == ["n"]
    assert isinstance(first, Job)
    assert isinstance(last, Job)
    assert (first.result(), last.result()) == (1, 2)


def test_what_finds_no_room_is_sent_again(client: Client, stub: Any) -> None:
    stub.rooms.extend([3, 2])
    assert client.gather(client.map("math.fibonacci", range(10))) == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    bodies = [body for _, path, _, body in stub.requests if path.endswith("fibonacci:batch")]
    assert [body.count(b"\n") + 1 for body in bodies] == [10, 7, 5]  # what was taken is not asked for again
    stub.rooms.extend([1])
    rolled = client.map("math.roll", [1, 2])
    batches = [(headers, body) for _, path, headers, body in stub.requests if path.endswith("roll:batch")]
    one, two = ((headers["idempotency-key"], body) for headers, body in batches)
    assert one == two  # with a key it is the same request
    assert len({job.job_id for job in rolled}) == 2


def test_patience_with_a_full_server_ends(stub: Any) -> None:
    stub.rooms.extend([1, *[0] * 100])
    with Client(patience_s=0.3) as client:
        with pytest.raises(QueueFull):
            client.map("math.fibonacci", range(3))
        stub.rooms.clear()
        stub.rooms.extend([1, *[0] * 100])
        jobs = client.submit_batch("math.fibonacci", range(3))
        stub.rooms.clear()
        stub.rooms.extend([1] * 100)  # with a key the same set finds room again and again
        with pytest.raises(QueueFull):
            client.map("math.roll", range(3))
        stub.rooms.clear()
        assert [type(job) for job in jobs] == [Job, QueueFull, QueueFull]


def test_jobs_are_listed_over_pages(client: Client) -> None:
    client.map("math.fibonacci", range(230))
    client.submit("math", "fail", {"n": 1}, tags="odd")
    assert len(list(client.jobs())) == 231
    assert len(list(client.jobs(limit=150, endpoint="math.fibonacci"))) == 150
    assert [job.document["endpoint"] for job in client.jobs(state="failed")] == ["fail"]
    assert [job.document["endpoint"] for job in client.jobs(tag="odd")] == ["fail"]
    (job,) = client.jobs(state="failed", limit=1)
    assert client.job(job.job_id).job_id == job.job_id
    with pytest.raises(NotFound):
        client.job("none")


def test_as_completed_gives_jobs_as_they_end(client: Client, stub: Any) -> None:
    slow, slower = client.math.slow(10), client.math.slow(11)
    quick = client.math.fibonacci(3)
    order = iter(as_completed([slow, slower, quick]))
    assert next(order) is quick
    stub.finish(slower.job_id)
    assert next(order) is slower
    stub.finish(slow.job_id, "failed")
    assert next(order) is slow
    assert list(order) == []
    assert list(as_completed([])) == []


def test_one_slow_job_does_not_hide_the_others(client: Client, stub: Any) -> None:
    slow = client.map("math.slow", range(100, 132))
    quick = client.map("math.fibonacci", range(60))
    order = iter(as_completed([*slow, *quick]))
    first = [next(order) for _ in quick]
    assert {job.job_id for job in first} == {job.job_id for job in quick}
    for job in slow:
        stub.finish(job.job_id)
    assert len(list(order)) == 32


def test_a_busy_server_is_asked_again(client: Client, stub: Any) -> None:
    client.services()
    full = {"code": "queue_full", "detail": "100000 jobs are queued"}
    stub.faults.extend([(429, {"Retry-After": "0"}, full), (503, {}, {"code": "draining"}), "drop", (502, {}, {})])
    assert client.math.fibonacci(20).result() == 6765
    assert len(stub.sent("POST", "/v1/math/fibonacci")) == 5


def test_patience_ends(stub: Any) -> None:
    full = (429, {"Retry-After": "7"}, {"code": "queue_full", "detail": "full"})
    with Client(patience_s=1) as client:
        client.services()
        stub.faults.append(full)
        with pytest.raises(QueueFull) as caught:
            client.math.fibonacci(1)
    assert caught.value.retry_after_s == 7.0
    assert isinstance(caught.value, CapacityError)


def test_a_wrong_token_says_where_the_right_one_is(stub: Any) -> None:
    with Client(token="wrong") as client, pytest.raises(Unauthorized, match="DATA_DIR/token") as caught:
        client.services()
    assert "wrong" not in str(caught.value)


def test_no_server_is_said_at_once_and_with_the_cure(stub: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionFailed, match=rf"127.0.0.1:{port} .*dask-fleet serve"):
            client.services()
        assert "math" not in dir(client)


def test_parameters_that_json_does_not_have_are_refused_here(client: Client, stub: Any) -> None:
    before = len(stub.requests)
    client.services()
    with pytest.raises(ValueError, match="no NaN"):
        client.submit("math", "fibonacci", {"n": float("nan")})
    with pytest.raises(TypeError, match=r"a parameter of type builtins\.object"):
        client.submit("math", "fibonacci", {"n": object()})
    assert len(stub.requests) == before + 1


def test_a_client_works_inside_a_running_loop(client: Client) -> None:
    async def cell() -> Any:
        return client.math.fibonacci(6).result()

    assert asyncio.run(cell()) == 8


def test_a_closed_client_says_so_and_leaves_no_thread(stub: Any) -> None:
    before = set(threading.enumerate())
    client = Client()
    job = client.math.fibonacci(1)
    client.close()
    client.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError, match="closed; make a new Client"):
        job.refresh_status()


def test_closing_ends_what_is_still_waited_for(stub: Any) -> None:
    before = set(threading.enumerate())
    with Client() as client:
        slow = client.math.slow(50)
        order = iter(as_completed([slow, client.math.fibonacci(1)]))
        next(order)
        started = time.monotonic()
    assert time.monotonic() - started < 2, "a held iterator must not keep the client from closing"
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError, match="closed"):
        next(order)


def test_an_interrupted_wait_leaves_nothing_behind(stub: Any) -> None:
    async def connecting(client: AsyncClient, rounds: int) -> None:
        waiting = asyncio.create_task(client.services(refresh=True), name="connecting")
        for _ in range(rounds):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    for rounds in range(8):  # in the steps before, while and after a connection is made
        client = Client()
        client._loop.run(connecting(client._inner, rounds))
        client.close()
    gc.collect()


def test_a_forgotten_client_leaves_no_thread(stub: Any) -> None:
    before = set(threading.enumerate())
    job = Client().math.fibonacci(6)
    gc.collect()
    assert job.result() == 8, "a job keeps its client alive"
    del job
    gc.collect()
    assert set(threading.enumerate()) == before


def test_the_asynchronous_client_is_the_same_thing(stub: Any) -> None:
    async def story() -> None:
        async with AsyncClient() as client:
            job = await client.math.fibonacci(10)
            assert await job == 55
            with pytest.raises(AttributeError, match="Did you mean 'fibonacci'"):
                await client.math.fibonaci(1)
            jobs = await client.map(client.math.fibonacci, range(5))
            assert await client.gather(jobs) == [0, 1, 1, 2, 3]
            slow = await client.math.slow(1)
            order = aiter(as_completed([slow, jobs[0]]))
            assert await anext(order) is jobs[0]
            stub.finish(slow.job_id)
            assert [job async for job in order] == [slow]
            assert [event.kind async for event in slow.events()] == ["accepted", "succeeded"]
            assert len([job async for job in client.jobs(endpoint="math.slow")]) == 1
            with pytest.raises(TypeError, match="async for"):
                iter(as_completed([slow])).__next__()

    asyncio.run(story())


def test_cancelling_a_wait_cancels_it(stub: Any) -> None:
    async def story() -> None:
        async with AsyncClient() as client:
            job = await client.math.slow(77)
            stub.arrived.clear()
            waiting = asyncio.create_task(job.result(), name="waiting")
            await asyncio.to_thread(stub.arrived.wait, 5)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(story())
