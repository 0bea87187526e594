"""Who is paused for killing worker processes, and who is not."""

from __future__ import annotations

from dask_fleet.controller.breaker import DEATHS, PAUSE_S, WITHIN_S, Breaker

EVE = ("default", "eve")
ADA = ("default", "ada")


def kill(breaker: Breaker, number: int, *owners: tuple[str, str], at: float) -> None:
    for owner in owners:
        breaker.died(("agent", f"worker-{number}"), owner, at)


def test_ten_within_a_minute_pause_the_user_once() -> None:
    breaker = Breaker()
    for number in range(DEATHS):
        assert breaker.judge(EVE, float(number)) is None
        kill(breaker, number, EVE, at=float(number))
    pause = breaker.judge(EVE, 9.0)
    assert pause is not None
    assert (pause.until, list(breaker.pauses)) == (9.0 + PAUSE_S, [EVE])
    assert "10 worker processes" in pause.why
    assert breaker.judge(EVE, 10.0) is None


def test_ten_within_longer_do_not() -> None:
    breaker = Breaker()
    for number in range(50):
        at = number * 1.01 * WITHIN_S / (DEATHS - 1)
        kill(breaker, number, EVE, at=at)
        assert breaker.judge(EVE, at) is None
    assert len(breaker._deaths) <= DEATHS
    assert sum(len(line) for line in breaker._of.values()) <= DEATHS


def test_a_process_counts_once_however_many_of_its_attempts_were_theirs() -> None:
    breaker = Breaker()
    for number in range(DEATHS - 1):
        kill(breaker, number, EVE, EVE, EVE, EVE, at=1.0)
    assert breaker.judge(EVE, 1.0) is None
    kill(breaker, 99, EVE, EVE, at=1.0)
    assert breaker.judge(EVE, 1.0) is not None


def test_a_death_shared_with_another_user_counts_against_neither() -> None:
    breaker = Breaker()
    for number in range(3 * DEATHS):
        kill(breaker, number, EVE, ADA, at=1.0)
    assert breaker.judge(EVE, 1.0) is None
    assert breaker.judge(ADA, 1.0) is None


def test_a_pause_ends_by_itself_and_counting_begins_anew() -> None:
    breaker = Breaker()
    for number in range(DEATHS):
        kill(breaker, number, EVE, at=50.0)
    assert breaker.judge(EVE, 50.0) is not None
    assert breaker.resume(50.0 + PAUSE_S - 0.1) == []
    assert breaker.resume(50.0 + PAUSE_S) == [EVE]
    assert breaker.pauses == {}
    for number in range(DEATHS - 1):
        kill(breaker, 100 + number, EVE, at=111.0)
    assert breaker.judge(EVE, 111.0) is None
    kill(breaker, 200, EVE, at=112.0)
    assert breaker.judge(EVE, 112.0) is not None


def test_the_same_name_in_another_tenant_is_another_user() -> None:
    breaker = Breaker()
    for number in range(DEATHS):
        kill(breaker, number, ("one", "eve"), at=1.0)
    assert breaker.judge(("two", "eve"), 1.0) is None
    assert breaker.judge(("one", "eve"), 1.0) is not None


def test_what_is_long_past_is_forgotten() -> None:
    breaker = Breaker()
    for number in range(1000):
        kill(breaker, number, ("default", f"user-{number}"), at=float(number))
    assert len(breaker._deaths) <= WITHIN_S + 1
    assert len(breaker._of) <= WITHIN_S + 1
