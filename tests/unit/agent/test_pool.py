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


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def settles(name: str, places: int) -> None:
    """Wait until the pool has as many threads as places again: none too many, none lost."""
    pause = threading.Event()
    for _ in range(1000):
        if len(threads_of(name)) == places:
            return
        pause.wait(0.01)
    assert len(threads_of(name)) == places


@pytest.mark.parametrize("asking", [1, 16])
def test_a_place_is_given_away_once_from_other_threads(asking: int) -> None:
    """The function waits in its place for threads that need the place; however many ask, it gives one."""
    name = f"given{asking}"
    pool = PlacePool(1, name=name)

    def function() -> list[int]:
        stay, found, barrier = pool.stay(), [], threading.Barrier(asking)

        def elsewhere(number: int) -> None:
            barrier.wait(PATIENCE_S)
            pool.leave(stay)
            found.append(pool.submit(lambda: number).result(PATIENCE_S))

        threads = [threading.Thread(target=elsewhere, args=(number,)) for number in range(asking)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        pool.leave(stay)
        assert len(threads_of(name)) == 2  # this one, and the one in its place
        return sorted(found)

    assert [pool.submit(function).result(PATIENCE_S) for _ in range(3)] == [list(range(asking))] * 3
    settles(name, 1)


def test_a_call_that_has_ended_gives_nothing_away() -> None:
    pool = PlacePool(1, name="late")
    stay = pool.submit(pool.stay).result(PATIENCE_S)
    assert stay is not None
    # The thread sets the result before it has quite ended the call; with the next one, it surely has.
    assert pool.submit(lambda: 1).result(PATIENCE_S) == 1
    (thread,) = threads_of("late")
    pool.leave(stay)
    assert pool.submit(threading.current_thread).result(PATIENCE_S) is thread
    assert threads_of("late") == [thread]
    assert pool.stay() is None
    pool.leave()  # of no pool: nothing to give
    assert threads_of("late") == [thread]


@pytest.mark.parametrize("when", ["outside", "returning"])
def test_a_place_given_away_while_its_thread_is_outside(when: str) -> None:
    """It does not come back to a place, not even if it was already queueing for one, and none is lost."""
    name = f"away-{when}"
    pool = PlacePool(1, name=name)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(PATIENCE_S)

    def function() -> int:
        stay = pool.stay()
        with pool.outside():
            pool.run(hold)
            assert held.wait(PATIENCE_S)
            if when == "outside":
                pool.leave(stay)
            else:
                threading.Thread(target=give_when_queueing, args=(stay,)).start()
        return len(threads_of(name))

    def give_when_queueing(stay: object) -> None:
        pause = threading.Event()
        for _ in range(1000):
            if pool._queue.qsize():
                break
            pause.wait(0.005)
        pool.leave(stay)  # type: ignore[arg-type]
        go.set()

    future = pool.submit(function)
    if when == "outside":
        assert future.result(PATIENCE_S) == 2  # at once, though the only place is taken
        go.set()
    future.result(PATIENCE_S)
    assert pool.submit(lambda: 3).result(PATIENCE_S) == 3
    settles(name, 1)


def test_going_outside_twice_in_one_thread_makes_one_place() -> None:
    pool = PlacePool(1, name="nested")

    def function() -> int:
        with pool.outside(), pool.outside():
            return len(threads_of("nested"))

    assert pool.submit(function).result(PATIENCE_S) == 2
    settles("nested", 1)
