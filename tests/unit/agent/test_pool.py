"""The pool of places."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest

from dask_fleet.agent.pool import PlacePool

PATIENCE_S = 10.0


def test_no_more_calls_run_at_once_than_there_are_places() -> None:
    pool = PlacePool(2)
    begun, go = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        begun.release()
        go.wait(PATIENCE_S)

    futures = [pool.submit(hold) for _ in range(3)]
    assert begun.acquire(timeout=PATIENCE_S)
    assert begun.acquire(timeout=PATIENCE_S)
    assert not begun.acquire(blocking=False)
    assert not futures[2].running()
    go.set()
    for future in futures:
        future.result(PATIENCE_S)


@pytest.mark.parametrize("places", [1, 2])
def test_waiting_outside_never_deadlocks_and_comes_back(places: int) -> None:
    pool = PlacePool(places)
    now, most, lock = 0, 0, threading.Lock()

    def inner() -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1
        return 1

    def outer() -> int:
        with pool.outside():
            found = pool.submit(inner).result(PATIENCE_S)
        return found + inner()

    assert [f.result(PATIENCE_S) for f in [pool.submit(outer) for _ in range(20)]] == [2] * 20
    assert most <= places


def test_the_places_are_as_many_afterwards() -> None:
    pool = PlacePool(1, name="counted")

    def nested(depth: int) -> int:
        if not depth:
            return 0
        with pool.outside():
            return 1 + pool.submit(nested, depth - 1).result(PATIENCE_S)

    assert pool.submit(nested, 5).result(PATIENCE_S) == 5
    # A thread that gave its place away ends; look until it has.
    deadline = threading.Event()
    for _ in range(500):
        left = [t for t in threading.enumerate() if t.name.startswith("counted-")]
        if len(left) == 1:
            break
        deadline.wait(0.01)
    assert len(left) == 1


def test_a_thread_that_works_for_a_waiting_function_gets_its_work_done() -> None:
    pool = PlacePool(1)

    def waits_for_its_own_thread() -> int:
        found: list[int] = []

        def elsewhere() -> None:
            with pool.outside():
                found.append(pool.submit(lambda: 7).result(PATIENCE_S))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(PATIENCE_S)
        return found[0]

    assert pool.submit(waits_for_its_own_thread).result(2 * PATIENCE_S) == 7


def test_context_variables_travel_and_exceptions_come_back() -> None:
    pool = PlacePool(1)
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    variable.set("mine")
    assert pool.submit(variable.get).result(PATIENCE_S) == "mine"

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        pool.submit(leave).result(PATIENCE_S)
    assert pool.submit(lambda: 1).result(PATIENCE_S) == 1
