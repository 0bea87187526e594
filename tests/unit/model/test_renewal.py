"""When certificates are renewed."""

from __future__ import annotations

from itertools import pairwise

from dask_fleet.model.renewal import LONGEST_S, SOONEST_S, Renewal

DAY_S = 86_400.0


def asked_at(renewal: Renewal, until_s: float, *, gives: float | None = None, now_s: float = 0.0) -> list[float]:
    """Return when it asks, if each answer is a certificate that ends at `gives`, or none comes."""
    times = []
    while (now_s := max(now_s, renewal.due_s)) < until_s:
        times.append(now_s)
        renewal.asked(now_s)
        if gives is not None:
            renewal.took(gives, "ca", now_s)
    return times


def test_half_way_through() -> None:
    renewal = Renewal()
    assert renewal.took(DAY_S, "ca", 0.0)
    assert renewal.due_s == DAY_S / 2
    renewal.asked(DAY_S / 2)
    assert renewal.took(1.5 * DAY_S, "ca", DAY_S / 2)
    assert renewal.due_s == DAY_S


def test_what_brings_nothing_is_tried_less_and_less_often_and_never_given_up() -> None:
    renewal = Renewal()
    renewal.took(DAY_S, "ca", 0.0)
    times = asked_at(renewal, DAY_S)
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[0] == SOONEST_S
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_S
    assert renewal.took(2 * DAY_S, "ca", DAY_S)
    assert renewal.due_s == 1.5 * DAY_S
    assert asked_at(renewal, 1.5 * DAY_S + 1, now_s=DAY_S)[:2] == [1.5 * DAY_S, 1.5 * DAY_S + SOONEST_S]


def test_certificates_that_hold_no_longer_are_no_reason_to_ask_at_once() -> None:
    """As at the end of an authority, and past it."""
    renewal = Renewal()
    assert renewal.took(100.0, "ca", 0.0)
    assert not renewal.took(100.0, "ca", 50.0)
    assert "ends at 1970-01-01 00:01:40" in renewal.complaint
    assert len(asked_at(renewal, 3600.0, gives=100.0)) < 8 + 3600 / LONGEST_S
    assert renewal.took(5_000.0, "another ca", 3600.0)  # a new scheduler has one


def test_clocks_that_differ_are_no_reason_to_ask_at_once() -> None:
    """Each certificate holds longer than the last, and has expired by our clock."""
    renewal = Renewal()
    now_s, asked = 1_000.0, 0
    while now_s < 4_600.0:
        assert not renewal.took(now_s - 10, "ca", now_s)
        renewal.asked(now_s)
        now_s, asked = renewal.due_s, asked + 1
    assert asked < 8 + 3600 / LONGEST_S
