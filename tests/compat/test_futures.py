"""Futures and what people do with them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from distributed import Client, Future, as_completed, fire_and_forget, get_worker, wait
from distributed.client import FutureCancelledError
from tests.compat.take import THREADS, WORKERS


def add_one(n: int) -> int:
    return n + 1


def test_submit_map_gather(client: Client) -> None:
    future = client.submit(add_one, 1)
    assert (future.result(), future.status) == (2, "finished")
    assert client.gather(client.map(add_one, range(100))) == list(range(1, 101))
    assert client.gather({"a": client.submit(add_one, 1), "b": [client.submit(add_one, 2)]}) == {"a": 2, "b": [3]}
    assert client.gather(client.map(lambda a, b: a * b, range(50), range(50), batch_size=10)) == [n * n for n in range(50)]


def test_errors_travel(client: Client) -> None:
    def fail(n: int) -> int:
        raise KeyError(f"no {n}")

    future = client.submit(fail, 7)
    with pytest.raises(KeyError, match="no 7"):
        future.result()
    assert future.status == "error"
    assert "fail" in "".join(str(frame.tb_frame.f_code.co_name) for frame in _frames(future.traceback()))
    after = client.submit(add_one, future)
    assert isinstance(after.exception(), KeyError)
    assert client.gather([client.submit(add_one, 1), after], errors="skip") == [2]


def _frames(traceback: Any) -> list[Any]:
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return frames


def test_as_completed(client: Client) -> None:
    assert sum(future.result() for future in as_completed(client.map(add_one, range(30)))) == 465
    with_results = as_completed(client.map(add_one, range(30)), with_results=True)
    assert sorted(value for _, value in with_results) == list(range(1, 31))
    walk = as_completed([client.submit(add_one, 0)])
    seen = []
    for future in walk:
        seen.append(future.result())
        if len(seen) < 5:
            walk.add(client.submit(add_one, future))
    assert seen == [1, 2, 3, 4, 5]
    assert sum(len(batch) for batch in as_completed(client.map(add_one, range(20), pure=False)).batches()) == 20


def test_wait_and_callbacks(client: Client) -> None:
    called: list[int] = []
    futures = client.map(add_one, range(5))
    for future in futures:
        future.add_done_callback(lambda done: called.append(done.result()))
    done, rest = wait(futures)
    assert (len(done), len(rest)) == (5, 0)
    until(lambda: sorted(called) == [1, 2, 3, 4, 5])


def until(true: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_scatter(client: Client) -> None:
    data = client.scatter(list(range(10)), broadcast=True, hash=False)
    assert client.submit(sum, data).result() == 45
    named = client.scatter({"x": 40, "y": 2})
    assert client.submit(lambda x, y: x + y, named["x"], named["y"]).result() == 42
    block = client.scatter(np.arange(200_000), direct=True)
    assert client.submit(np.sum, block).result() == 200_000 * 199_999 // 2
    everywhere = client.scatter(np.ones(1000), broadcast=True)
    assert len(client.who_has([everywhere])[everywhere.key]) == WORKERS


def test_replicate_and_rebalance(client: Client) -> None:
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    future = client.scatter(np.arange(1000), workers=workers[:1])
    client.replicate([future], n=2)
    assert sorted(client.who_has([future])[future.key]) == workers
    client.rebalance()
    assert client.submit(np.sum, future).result() == 499_500


def test_cancel_and_release(client: Client) -> None:
    def endless() -> None:
        from distributed.worker import thread_state

        known = get_worker().state.tasks
        while (task := known.get(thread_state.key)) is not None and task.state != "cancelled":
            time.sleep(0.02)

    future = client.submit(endless, pure=False)
    after = client.submit(lambda _: 1, future)
    client.cancel([future])
    with pytest.raises(FutureCancelledError):
        future.result()
    with pytest.raises(FutureCancelledError):
        after.result()
    assert client.submit(add_one, 1, pure=False).result() == 2


def test_futures_named_and_shared(client: Client) -> None:
    future = client.submit(add_one, 41, key="the-answer")
    again = Future("the-answer", client=client)
    assert (future.result(), again.result()) == (42, 42)
    with Client(client.scheduler.address, security=client.security, set_as_default=False) as other:
        assert other.submit(add_one, 41, key="the-answer").result() == 42


def test_publish(client: Client) -> None:
    client.publish_dataset(answers=client.map(add_one, range(3)))
    with Client(client.scheduler.address, security=client.security, set_as_default=False) as other:
        assert "answers" in other.list_datasets()
        assert other.gather(list(other.get_dataset("answers"))) == [1, 2, 3]
        other.unpublish_dataset("answers")
    assert "answers" not in client.datasets


class Counter:
    """An actor."""

    def __init__(self, start: int) -> None:
        self.n = start

    def add(self, by: int) -> int:
        self.n += by
        return self.n

    def get(self) -> int:
        return self.n

    def fail(self) -> None:
        raise ValueError("on purpose")


def test_actor(client: Client) -> None:
    counter = client.submit(Counter, 10, actor=True).result()
    assert [counter.add(2).result() for _ in range(5)] == [12, 14, 16, 18, 20]
    assert counter.get().result() == 20
    with pytest.raises(ValueError, match="on purpose"):
        counter.fail().result()
    assert client.submit(lambda actor: actor.add(1).result(), counter).result() == 21


def test_retries(client: Client) -> None:
    from distributed import Variable

    def fails_twice(name: str) -> int:
        tries = Variable(name)
        tries.set(tries.get() + 1)
        if tries.get() < 3:
            raise OSError("not yet")
        return int(tries.get())

    Variable("tries-1", client=client).set(0)
    assert client.submit(fails_twice, "tries-1", retries=2, pure=False).result() == 3
    Variable("tries-2", client=client).set(0)
    failed = client.submit(fails_twice, "tries-2", retries=1, pure=False)
    with pytest.raises(OSError, match="not yet"):
        failed.result()
    client.retry([failed])
    assert failed.result() == 3


def test_restrictions_and_priorities(client: Client) -> None:
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    placed = client.map(lambda _: get_worker().address, range(10), workers=workers[1:2], pure=False)
    assert set(client.gather(placed)) == {workers[1]}
    assert client.submit(add_one, 1, priority=10, pure=False).result() == 2
    assert client.submit(add_one, 1, workers=["tcp://10.0.0.1:1"], allow_other_workers=True, pure=False).result() == 2


def test_fire_and_forget(client: Client) -> None:
    from distributed import Event

    fire_and_forget(client.submit(lambda: Event("fired").set(), pure=False))
    assert Event("fired", client=client).wait(60)


def test_what_the_scheduler_knows(client: Client) -> None:
    assert sum(client.nthreads().values()) == WORKERS * THREADS
    assert sum(client.ncores().values()) == WORKERS * THREADS
    future = client.submit(add_one, 5)
    wait(future)
    assert list(client.who_has([future])) == [future.key]
    assert future.key in [key for keys in client.has_what().values() for key in keys]
    assert client.nbytes(summary=False)[future.key] > 0
    assert client.processing() == dict.fromkeys(client.nthreads(), ())
    assert client.call_stack() == {}
    assert any("memory" in entry for entry in client.run_on_scheduler(_story, future.key))


def _story(key: str, dask_scheduler: Any) -> list[str]:
    return [str(entry) for entry in dask_scheduler.story(key)]
