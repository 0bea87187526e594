from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest
from distributed.threadpoolexecutor import rejoin, secede

from dask_fleet.agent.clusters.fair_pool import FairPool, FairThreadPoolExecutor
from dask_fleet.agent.pool import PlacePool

PATIENCE_S = 30.0


class Gate:
    """A task that says that it runs, and waits to be let go."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        return "through"


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def eventually(true: Callable[[], bool]) -> None:
    timer = threading.Event()
    for _ in range(int(PATIENCE_S * 100)):
        if true():
            return
        timer.wait(0.01)
    pytest.fail("it did not become true in time")


def make(places: int = 1) -> FairPool:
    return FairPool(PlacePool(places, name="fair"))


def test_dask_takes_a_view_for_threads() -> None:
    assert "ThreadPoolExecutor" in FairThreadPoolExecutor.__name__


def test_a_view_gives_results_and_errors() -> None:
    view = make().view(1)
    assert view.submit(pow, 2, exp=3).result(PATIENCE_S) == 8
    with pytest.raises(ZeroDivisionError):
        view.submit(lambda: 1 / 0).result(PATIENCE_S)
    eventually(lambda: view.busy == 0)


def test_shutdown_is_for_nobody() -> None:
    view = make().view(1)
    view.shutdown(wait=True)
    assert view.submit(int).result(PATIENCE_S) == 0


def test_views_take_turns_however_much_one_has_waiting() -> None:
    pool = make(1)
    greedy, modest, gate, order = pool.view(4), pool.view(1), Gate(), []
    held = greedy.submit(gate)
    wait(gate.entered)
    many = [greedy.submit(order.append, f"greedy-{n}") for n in range(100)]
    few = [modest.submit(order.append, f"modest-{n}") for n in range(3)]
    gate.open.set()
    for future in (held, *many, *few):
        future.result(PATIENCE_S)
    assert [order.index(f"modest-{n}") for n in range(3)] == pytest.approx([1, 3, 5], abs=1)
    assert [name for name in order if name.startswith("greedy")] == [f"greedy-{n}" for n in range(100)]


def test_a_view_holds_at_most_its_limit() -> None:
    pool = make(3)
    narrow, other = pool.view(1), pool.view(2)
    first, second, third = Gate(), Gate(), Gate()
    a, b, c = narrow.submit(first), narrow.submit(second), other.submit(third)
    wait(first.entered)
    wait(third.entered)  # another view gets the free place
    assert not second.entered.is_set()
    first.open.set()
    wait(second.entered)
    second.open.set()
    third.open.set()
    assert {future.result(PATIENCE_S) for future in (a, b, c)} == {"through"}


def test_who_secedes_makes_room_and_two_drivers_on_one_place_do_not_deadlock() -> None:
    view = make(1).view(1)

    def driver(n: int) -> int:
        secede()
        part = view.submit(lambda: n * 10).result(PATIENCE_S)
        rejoin()
        return part + 1

    assert [future.result(PATIENCE_S) for future in [view.submit(driver, n) for n in range(5)]] == [1, 11, 21, 31, 41]
    eventually(lambda: view.busy == 0)


def test_who_never_comes_back_leaves_all_places_and_no_thread() -> None:
    view = FairPool(PlacePool(2, name="leavers")).view(2)
    for _ in range(20):
        view.submit(secede).result(PATIENCE_S)
    gates = [Gate(), Gate()]
    futures = [view.submit(gate) for gate in gates]
    for gate in gates:
        wait(gate.entered)  # both places are there
        gate.open.set()
    for future in futures:
        future.result(PATIENCE_S)
    eventually(lambda: sum(thread.name.startswith("leavers") for thread in threading.enumerate()) == 2)


def test_seceding_twice_is_what_dask_expects() -> None:
    def twice() -> None:
        secede()
        secede()

    with pytest.raises(KeyError):
        make().view(1).submit(twice).result(PATIENCE_S)


def test_who_comes_back_waits_for_the_limit_of_its_view() -> None:
    view = make(4).view(1)
    seceded, go_back, back = threading.Event(), threading.Event(), threading.Event()

    def driver() -> None:
        secede()
        seceded.set()
        wait(go_back)
        rejoin()
        back.set()

    first = view.submit(driver)
    wait(seceded)
    gate = Gate()
    second = view.submit(gate)
    wait(gate.entered)
    go_back.set()
    eventually(lambda: len(view._returning) == 1)
    assert not back.is_set()
    gate.open.set()
    wait(back)
    first.result(PATIENCE_S)
    second.result(PATIENCE_S)


def test_what_waits_is_cancelled_when_the_view_closes_and_what_runs_is_waited_for() -> None:
    view = make(1).view(1)
    gate, idle = Gate(), threading.Event()
    running, waiting = view.submit(gate), view.submit(int)
    wait(gate.entered)
    view.close(idle.set)
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_S)
    assert view.busy == 1
    assert not idle.is_set()
    with pytest.raises(RuntimeError, match="left"):
        view.submit(int)
    gate.open.set()
    wait(idle)
    assert running.result(PATIENCE_S) == "through"
    assert view.busy == 0


def test_a_seceded_task_keeps_a_closed_view_busy() -> None:
    view = make(1).view(1)
    seceded, end, idle = threading.Event(), threading.Event(), threading.Event()

    def driver() -> None:
        secede()
        seceded.set()
        wait(end)

    view.submit(driver)
    wait(seceded)
    view.close(idle.set)
    assert view.busy == 1
    assert not idle.is_set()
    end.set()
    wait(idle)


def test_an_idle_view_is_idle_at_once() -> None:
    idle = threading.Event()
    make().view(1).close(idle.set)
    assert idle.is_set()


def test_cancelled_tasks_are_passed_over() -> None:
    view, gate = make(1).view(1), Gate()
    held = view.submit(gate)
    wait(gate.entered)
    dropped, kept = view.submit(int), view.submit(int)
    assert dropped.cancel()
    gate.open.set()
    assert kept.result(PATIENCE_S) == 0
    held.result(PATIENCE_S)


def test_jobs_and_tasks_share_the_places() -> None:
    places = PlacePool(1, name="fair")
    view, gate, job = FairPool(places).view(1), Gate(), threading.Event()
    held = view.submit(gate)
    wait(gate.entered)
    places.run(job.set)
    assert not job.is_set()
    gate.open.set()
    wait(job)
    held.result(PATIENCE_S)


def test_the_next_view_has_all_places_while_tasks_of_a_replaced_one_go_on() -> None:
    """And afterwards there are as many as before: a place that stayed would let three tasks run at once."""
    pool = make(2)
    old, stuck, away = pool.view(2), Gate(), Gate()

    def leave() -> str:
        secede()
        return away()

    held = old.submit(stuck), old.submit(leave)
    wait(stuck.entered)
    wait(away.entered)
    busy = [Gate() for _ in range(2)]
    next_view = pool.view(2)
    idle = threading.Event()
    old.close(idle.set)
    old.replace()
    done = [next_view.submit(gate) for gate in busy]
    for gate in busy:
        wait(gate.entered)  # both at once
    for gate in (stuck, away, *busy):
        gate.open.set()
    assert [future.result(PATIENCE_S) for future in (*held, *done)] == ["through"] * 4
    wait(idle)
    wide, gates = pool.view(5), [Gate() for _ in range(5)]
    last = [wide.submit(gate) for gate in gates]
    eventually(lambda: sum(gate.entered.is_set() for gate in gates) == 2)
    assert not threading.Event().wait(0.2)  # a third would have begun by now
    assert sum(gate.entered.is_set() for gate in gates) == 2
    for gate in gates:
        gate.open.set()
    assert [future.result(PATIENCE_S) for future in last] == ["through"] * 5


@pytest.mark.parametrize("secedes", [False, True])
def test_a_replaced_task_gives_its_place_back_once_however_it_ends(*, secedes: bool) -> None:
    pool = make(1)
    old, gate = pool.view(1), Gate()

    def task() -> str:
        gate()
        if secedes:
            secede()
            rejoin()
        return "through"

    future = old.submit(task)
    wait(gate.entered)
    idle = threading.Event()
    old.close(idle.set)
    old.replace()
    old.replace()  # a second time changes nothing
    gate.open.set()
    assert future.result(PATIENCE_S) == "through"
    wait(idle)
    wide, gates = pool.view(3), [Gate() for _ in range(3)]
    last = [wide.submit(one) for one in gates]
    wait(gates[0].entered)
    assert not gates[1].entered.wait(0.2)
    for one in gates:
        one.open.set()
    assert [one.result(PATIENCE_S) for one in last] == ["through"] * 3
