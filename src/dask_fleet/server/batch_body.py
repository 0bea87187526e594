"""The body of a batch: cut into the texts of its parameter sets, without looking into them.

Each set is decoded by itself afterwards, with the limits of a single call: so what is wrong with one is told of that one.
Of a JSON array only the commas between its elements are looked for. A parser would decode 16 MiB in one go, or make eight
million objects of ``[1,1,1,…]``, before anybody could say that this is too much.
"""

from __future__ import annotations

import re

from dask_fleet.model.errors import BadJSON, BadRequest
from dask_fleet.server.pacing import Pacer

MAX_ITEMS = 10_000
"""Parameter sets in one batch."""
MAX_BATCH_BYTES = 16 << 20
"""Bytes of one batch."""

_WINDOW_BYTES = 128 << 10
"""What is looked through between two looks at the clock: a millisecond or two in the worst case."""
_SEARCHES_A_LOOK = 256
"""The same in searches."""
_MOST_SEARCHES = 1_000_000
"""About one for each bracket and each set: a second's work. A hundred brackets in each of ten thousand sets are few, sixteen
million in one are somebody's experiment."""
_WHITESPACE = b" \t\r\n"

_TOP = re.compile(rb'[^\[\]{}",]*+(?:"(?:[^"\\]++|\\.)*+"[^\[\]{}",]*+)*+', re.DOTALL)
"""Runs to the next bracket or comma outside of strings, or to a string that the window cuts."""
_INNER = re.compile(rb'[^\[\]{}"]*+(?:"(?:[^"\\]++|\\.)*+"[^\[\]{}"]*+)*+', re.DOTALL)
"""The same inside of an element, where commas separate nothing of ours."""
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)

_QUOTE, _COMMA = b'",'
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")
_END = ord("]")
_SEPARATORS = frozenset((_COMMA, _END))


def lines_of(body: bytes) -> list[bytes]:
    """Return the sets of an NDJSON body, one a line; empty lines are left out and not counted.

    Raises
    ------
    BadRequest
        If there are more than `MAX_ITEMS`.
    """
    if body.count(b"\n") > 2 * MAX_ITEMS:
        raise _too_many()
    lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    if len(lines) > MAX_ITEMS:
        raise _too_many()
    return lines


async def elements_of(body: bytes, pacer: Pacer) -> list[bytes]:
    """Return the texts of the elements of a JSON array.

    Raises
    ------
    BadJSON
        If the body is no array.
    BadRequest
        If there are more than `MAX_ITEMS`, or far too many brackets.
    """
    size = len(body)
    position = size - len(body.lstrip(_WHITESPACE))
    if body[position : position + 1] != b"[":
        raise BadJSON("the body must be a JSON array of parameter objects, or NDJSON with one object a line")
    position += 1
    elements: list[bytes] = []
    begin, depth, searches, rested_at = position, 0, 0, position
    while True:
        searches += 1
        if searches % _SEARCHES_A_LOOK == 0 or position - rested_at >= _WINDOW_BYTES:
            if searches > _MOST_SEARCHES:
                raise BadRequest("the array has too many brackets to be taken apart: send it as NDJSON, one object a line")
            rested_at = position
            await pacer.rest()
        window = min(size, position + _WINDOW_BYTES)
        found = (_INNER if depth else _TOP).match(body, position, window)
        assert found is not None, "it matches nothing at least"
        position = found.end()
        if position >= size:
            raise _cut_short(size)
        mark = body[position]
        if mark in _OPENING:
            depth += 1
        elif mark in _CLOSING and depth:
            depth -= 1
        elif mark == _QUOTE:  # its string ends in another window, or never
            position = await _end_of_string(body, position + 1, pacer)
            continue
        elif not depth and mark in _SEPARATORS:
            element = body[begin:position].strip(_WHITESPACE)
            if element:
                elements.append(element)
            elif mark == _COMMA or elements:
                raise BadJSON(f"malformed JSON at byte {position}: a parameter object was expected")
            if len(elements) > MAX_ITEMS:
                raise _too_many()
            begin = position + 1
            if mark == _END:
                break
        elif position < window:
            raise BadJSON(f"malformed JSON at byte {position}: a closing brace without its opening one")
        else:
            continue
        position += 1
    if body[begin:].strip(_WHITESPACE):
        raise BadJSON(f"malformed JSON after byte {begin}: there is more after the end of the array")
    return elements


async def _end_of_string(body: bytes, position: int, pacer: Pacer) -> int:
    """Return where a string that begins before `position` has ended."""
    size = len(body)
    while True:
        window = min(size, position + _WINDOW_BYTES)
        found = _STRING.match(body, position, window)
        assert found is not None, "it matches nothing at least"
        position = found.end()
        if position < size and body[position] == _QUOTE:
            return position + 1
        if window == size:
            raise _cut_short(size)
        await pacer.rest()


def _cut_short(size: int) -> BadJSON:
    return BadJSON(f"malformed JSON at byte {size}: the array does not end")


def _too_many() -> BadRequest:
    return BadRequest(f"a batch takes at most {MAX_ITEMS:,} parameter sets: send the rest in another one", limit=MAX_ITEMS)
