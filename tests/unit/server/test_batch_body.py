"""Cutting a batch's body into its sets: the same cuts a parser would make, whatever is in them."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_fleet.model.errors import BadJSON, BadRequest
from dask_fleet.server import batch_body
from dask_fleet.server.batch_body import MAX_ITEMS, elements_of, lines_of
from dask_fleet.server.pacing import Pacer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def elements(body: bytes) -> list[bytes]:
    return asyncio.run(elements_of(body, Pacer()))


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1]), st.integers(1, 40))
def test_elements_are_those_a_parser_finds(values: list[Any], ascii_only: bool, indent: int | None, window: int) -> None:
    body = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    kept = batch_body._WINDOW_BYTES
    batch_body._WINDOW_BYTES = max(2, window)
    try:
        found = elements(b" \r\n" + body + b"\t\n")
    finally:
        batch_body._WINDOW_BYTES = kept
    assert [json.loads(element) for element in found] == json.loads(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text(alphabet='[]{}",:\\ a1', max_size=30).map(str.encode), st.integers(2, 6))
def test_garbage_is_refused_or_cut_but_never_breaks_or_loops(garbage: bytes, window: int) -> None:
    kept = batch_body._WINDOW_BYTES
    batch_body._WINDOW_BYTES = window
    try:
        found = elements(b"[" + garbage)
    except BadJSON:
        try:
            value = json.loads(b"[" + garbage)
        except ValueError:
            return
        raise AssertionError(f"{value!r} is an array") from None
    finally:
        batch_body._WINDOW_BYTES = kept
    try:
        value = json.loads(b"[" + garbage)
    except (ValueError, RecursionError):
        return  # what is malformed within an element is told of that element
    assert [json.loads(element) for element in found] == value


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"{}", b"[", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1,,2]", b"[}", b"[1]]", b"[1] x", b'["', b'["\\',
             b"[[1]", b'{"n": 1}', b"\xef\xbb\xbf[]"])
def test_what_is_no_array_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(BadJSON):
        elements(body)


def test_an_empty_batch_is_one() -> None:
    assert elements(b" [ \n ] ") == []
    assert lines_of(b"") == lines_of(b"\n \r\n\n") == []


def test_lines_leave_out_empty_ones() -> None:
    assert lines_of(b'{"n":1}\r\n\n  \n{"n":2}') == [b'{"n":1}\r', b'{"n":2}']


def test_more_than_the_limit_is_refused() -> None:
    assert len(lines_of(b"{}\n" * MAX_ITEMS)) == len(elements(b"[" + b",".join([b"{}"] * MAX_ITEMS) + b"]")) == MAX_ITEMS
    for many in (b"{}\n" * (MAX_ITEMS + 1), b"\n" * (3 * MAX_ITEMS)):
        with pytest.raises(BadRequest, match="10,000"):
            lines_of(many)
    with pytest.raises(BadRequest, match="10,000") as refused:
        elements(b"[" + b"1," * MAX_ITEMS + b"1]")
    assert refused.value.extra == {"limit": MAX_ITEMS}


def test_an_array_of_nothing_but_brackets_is_given_up() -> None:
    with pytest.raises(BadRequest, match="NDJSON"):
        elements(b"[" + b"[]," * 10 + b"[" * 1_500_000)


BRACKETS = b"[" * 8 + b"]" * 8 + b"," + b"1" * 64 + b","


@pytest.mark.parametrize("piece", [BRACKETS, b'"' + b"\\n" * 8 + b'",', b"1,", b'"a":[1],', b"x" * 16])
def test_others_have_their_turns_while_a_long_body_is_cut(piece: bytes) -> None:
    async def act() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counter = asyncio.create_task(count())
        await elements_of(b"[[" + piece * ((2 << 20) // len(piece)) + b"1]]", Pacer(slice_s=0.0))
        counter.cancel()
        await asyncio.gather(counter, return_exceptions=True)
        return turns

    assert asyncio.run(act()) >= 8
