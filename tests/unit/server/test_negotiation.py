"""Choosing a form by Accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fleet.server.negotiation import choose

JSON, ARROW, PNG = "application/json", "application/vnd.apache.arrow.stream", "image/png"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        (ARROW, ARROW),
        ("APPLICATION/VND.Apache.Arrow.Stream", ARROW),
        (f"{ARROW}, */*;q=0.5", ARROW),
        (f"{JSON};q=0.5, {ARROW}", ARROW),
        (f"{JSON};q=0.5, {ARROW};q=0.4", JSON),
        (f"{JSON};q=0, */*", ARROW),
        (f"*/*, {JSON};q=0", ARROW),
        (f"application/*;q=0, {ARROW};q=0.1", ARROW),
        ("text/html, */*;q=0.8", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/json;profile=x;q=0.2, application/*;q=0.1", JSON),
        ("image/png", None),
        ("text/*", None),
        ("*/*;q=0", None),
        ("*/json", None),
        ("json", None),
        ("application/json;q=2", None),
        ("application/json;q=nan", None),
        ("application/json;q=0.0001", None),
        (",,,", None),
        (f"garbage, {ARROW}", ARROW),
    ],
)
def test_choose(accept: str | None, chosen: str | None) -> None:
    assert choose(accept, [JSON, ARROW]) == chosen


def test_parameters_of_an_offer_are_not_compared() -> None:
    assert choose("text/plain", ["text/plain; charset=utf-8"]) == "text/plain; charset=utf-8"


def test_nothing_offered() -> None:
    assert choose(None, []) is None
    assert choose("*/*", []) is None


@given(st.text(max_size=200))
def test_no_header_breaks_it(accept: str) -> None:
    assert choose(accept, [JSON, PNG]) in {JSON, PNG, None}
