"""Options of a call: what goes beside it, and every malformed one."""

from __future__ import annotations

import pytest

from dask_fleet.model.errors import BadRequest
from dask_fleet.server.auth import new_token
from dask_fleet.server.options import CallOptions, parse_options

NOW = 1_700_000_000_000_000


def options(*headers: tuple[str, str], query: str = "") -> CallOptions:
    return parse_options([(name.encode(), value.encode()) for name, value in headers], query.encode(), now_us=NOW)


def test_without_options_nothing_is_made() -> None:
    assert options(("accept", "*/*")) is options(("host", "x"))


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("wait=5", 5),
        ("WAIT = 7", 7),
        ("respond-async, wait=9", 9),
        ("wait=9; foo=1", 9),
        ("wait=600", 60),
        ('wait="3"', 3),
        ("respond-async", 0),
        ("wait=-1", 0),
        ("await=4", 0),
        ("wait=5s", 0),
    ],
)
def test_prefer_wait(text: str, wait_s: int) -> None:
    got = options(("prefer", text))
    assert got.wait_s == wait_s
    assert got.preference_applied == (f"wait={wait_s}".encode() if wait_s else None)


def test_a_token_beside_a_call_is_refused_before_it_is_kept() -> None:
    token = new_token()
    for name, value in (("idempotency-key", f"k-{token}"), ("fleet-tags", f"nightly, {token}")):
        with pytest.raises(BadRequest, match="revoke") as caught:
            options((name, value))
        assert token not in caught.value.detail
    assert options(("fleet-tags", "fleet_night")).tags == ("fleet_night",)


def test_prefer_may_come_in_several_headers() -> None:
    assert options(("prefer", "respond-async"), ("prefer", "wait=2")).wait_s == 2


@pytest.mark.parametrize("text", ["5", "+5", "-100", "100"])
def test_priority(text: str) -> None:
    assert options(("fleet-priority", text)).priority == int(text)


@pytest.mark.parametrize("text", ["101", "-101", "1.5", "high", "", "9" * 50])
def test_bad_priority(text: str) -> None:
    with pytest.raises(BadRequest, match="Fleet-Priority"):
        options(("fleet-priority", text))


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("10", NOW + 10_000_000),
        ("0.5", NOW + 500_000),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000_000),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800_000_000),
    ],
)
def test_deadline(text: str, at_us: int) -> None:
    assert options(("fleet-deadline", text)).deadline_us == at_us


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "-5", "2026-01-31T12:00:00", "nan", "1e9", "99999-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00",  # in UTC, no document could show them
    ],
)
def test_bad_deadline(text: str) -> None:
    with pytest.raises(BadRequest, match="Fleet-Deadline"):
        options(("fleet-deadline", text))


def test_tags_are_sorted_and_unique() -> None:
    assert options(("fleet-tags", "b, a,b ,")).tags == ("a", "b")


@pytest.mark.parametrize("text", ["a b", "-a", "a" * 65, ",".join(f"t{i}" for i in range(21)), "ä"])
def test_bad_tags(text: str) -> None:
    with pytest.raises(BadRequest, match="Fleet-Tags"):
        options(("fleet-tags", text))


@pytest.mark.parametrize("text", ["", "a b", "x" * 256, "ä"])
def test_bad_idempotency_key(text: str) -> None:
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        options(("idempotency-key", text))


@pytest.mark.parametrize("name", ["fleet-priority", "fleet-deadline", "fleet-tags", "idempotency-key"])
def test_an_option_given_twice_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="more than once"):
        options((name, "1"), (name, "1"))


@pytest.mark.parametrize(
    ("query", "refresh"), [("refresh=true", True), ("refresh=1", True), ("refresh", True), ("refresh=false", False)]
)
def test_refresh(query: str, refresh: bool) -> None:
    assert options(query=query).refresh is refresh


@pytest.mark.parametrize("query", ["refresh=maybe", "fresh=true", "refresh=true&x=1", "wait=5"])
def test_unknown_query_parameters_are_refused(query: str) -> None:
    with pytest.raises(BadRequest, match="query"):
        options(query=query)
