"""How far ahead an agent is given work."""

from __future__ import annotations

import pytest

from dask_fleet.controller.pipeline import MOST_AHEAD, Window

QUICK = ("s", "quick")


def settled(sojourn_s: float, *, held: int, slots: int) -> Window:
    window = Window()
    for _ in range(200):
        window.ended(QUICK, sojourn_s=sojourn_s, held=held, slots=slots)
    return window


def test_nothing_is_given_ahead_before_anything_is_known() -> None:
    assert Window().ahead == 0


@pytest.mark.parametrize(("job_s", "ahead"), [(10.0, 0), (0.1, 0), (0.041, 0), (0.016, 2), (0.001, 40)])
def test_only_short_jobs_are_given_ahead(job_s: float, ahead: int) -> None:
    assert settled(job_s, held=2, slots=2).ahead == ahead


def test_the_window_does_not_feed_on_itself() -> None:
    """Attempts that wait ahead stay longer, which must not be taken for longer jobs, nor for shorter ones."""
    assert settled(0.001, held=2, slots=2).ahead == settled(0.006, held=12, slots=2).ahead == 40


def test_the_window_is_bounded() -> None:
    assert settled(1e-9, held=1, slots=64).ahead == MOST_AHEAD


def test_what_is_given_back_closes_it_until_a_job_ends() -> None:
    window = settled(0.001, held=2, slots=2)
    window.given_back()
    assert window.ahead == 0
    window.ended(QUICK, sojourn_s=5.0, held=2, slots=2)
    assert window.ahead == 0
    window.given_back()
    window.ended(QUICK, sojourn_s=0.001, held=2, slots=2)
    assert window.ahead == 40


def test_a_short_endpoint_is_known_by_its_own_jobs() -> None:
    window = settled(0.001, held=2, slots=2)
    assert window.is_short(QUICK)
    assert not window.is_short(("s", "never seen"))
    window.ended(("s", "slow"), sojourn_s=1.0, held=1, slots=2)
    assert not window.is_short(("s", "slow"))
    assert window.is_short(QUICK)
    window.given_back()
    assert not window.is_short(QUICK)
