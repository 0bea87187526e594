"""Ranges and conditions of results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fleet.model.errors import RangeNotSatisfiable
from dask_fleet.server.ranges import names_tag, part, range_applies

TAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("bytes=0-4", (0, 5)),
        ("bytes=0-0", (0, 1)),
        ("Bytes= 2-3 ", (2, 4)),
        ("bytes=5-", (5, 10)),
        ("bytes=5-99", (5, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=-", None),
        ("bytes=4-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("0-1", None),
        ("bytes=0-1\n", (0, 2)),
    ],
)
def test_part(header: str | None, expected: tuple[int, int] | None) -> None:
    assert part(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=9999999999999999999-"])
def test_outside(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        part(header, 10)
    assert caught.value.extra["size"] == 10


def test_nothing_is_outside_of_an_empty_result_but_every_range() -> None:
    assert part(None, 0) is None
    for header in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        with pytest.raises(RangeNotSatisfiable):
            part(header, 0)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 20))
def test_a_part_is_what_slicing_gives(first: int, last: int, size: int) -> None:
    data = bytes(range(size))
    try:
        found = part(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert not data[first : last + 1]
        return
    if last < first:
        assert found is None
    else:
        assert found is not None
        assert data[slice(*found)] == data[first : last + 1]


@pytest.mark.parametrize(
    ("header", "weakly", "matches"),
    [
        (TAG, True, True),
        (TAG, False, True),
        ("*", False, True),
        (f"W/{TAG}", True, True),
        (f"W/{TAG}", False, False),
        ('"x", "y"', True, False),
        (f'"x" , {TAG}', False, True),
        (f'"a,b",{TAG}', False, True),
        ("abc", True, False),
        (f"x {TAG}", True, False),
        ("", True, False),
        ('"abc', True, False),
    ],
)
def test_names_tag(header: str, weakly: bool, matches: bool) -> None:
    assert names_tag(header, TAG, weakly=weakly) is matches


@given(st.text(alphabet='"W/abc, *', max_size=60))
def test_no_condition_breaks_it(header: str) -> None:
    names_tag(header, TAG, weakly=True)


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [(None, True), (TAG, True), (f"W/{TAG}", False), ('"x"', False), ("Sat, 29 Oct 1994 19:43:31 GMT", False)],
)
def test_if_range(if_range: str | None, applies: bool) -> None:
    assert range_applies(if_range, TAG) is applies
