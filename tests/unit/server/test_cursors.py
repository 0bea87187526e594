"""Cursors: good for the listing they came from, and for nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fleet.model.errors import NotFound
from dask_fleet.model.jobs import JobFilter
from dask_fleet.model.states import RunState
from dask_fleet.server.cursors import Cursors

WHERE = JobFilter(tenant="default", state=RunState.FAILED)


@given(st.integers(0, 2**63 - 1))
def test_a_cursor_says_where_the_page_begins(before: int) -> None:
    cursors = Cursors("ledger-1")
    assert cursors.read(cursors.make(before, WHERE), WHERE) == before


@pytest.mark.parametrize(
    "other",
    [
        JobFilter(tenant="default"),
        JobFilter(tenant="other", state=RunState.FAILED),
        JobFilter(tenant="default", state=RunState.QUEUED),
        JobFilter(tenant="default", state=RunState.FAILED, tag="x"),
        JobFilter(tenant="default", state=RunState.FAILED, created_after_us=0),
    ],
)
def test_it_binds_to_its_filters(other: JobFilter) -> None:
    cursors = Cursors("ledger-1")
    with pytest.raises(NotFound):
        cursors.read(cursors.make(7, WHERE), other)


def test_it_binds_to_its_ledger() -> None:
    with pytest.raises(NotFound):
        Cursors("ledger-2").read(Cursors("ledger-1").make(7, WHERE), WHERE)


def test_no_mistyped_cursor_is_taken() -> None:
    cursors = Cursors("ledger-1")
    cursor = cursors.make(123456, WHERE)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/ é\0"
    # The last of the 27 characters carries two bits that stand for nothing.
    for place in range(len(cursor) - 1):
        for letter in alphabet:
            if letter != cursor[place]:
                with pytest.raises(NotFound):
                    cursors.read(cursor[:place] + letter + cursor[place + 1 :], WHERE)


@given(st.text(max_size=40))
def test_nothing_else_is_taken(text: str) -> None:
    with pytest.raises(NotFound):
        Cursors("ledger-1").read(text, WHERE)
