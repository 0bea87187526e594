"""JSON from strangers: RFC 8259 and I-JSON (RFC 7493) to the letter, within limits that cost us milliseconds
at most.

The standard library's scanner does the work; around it stand checks for all it lets through: ``NaN``, numbers
beyond a double, names given twice, halves of surrogate pairs, nesting that would exhaust its stack. Small
bodies, nearly all of them, skip the checks that their size makes needless.
"""

from __future__ import annotations

import math
import re
from itertools import accumulate
from json import JSONDecodeError, JSONDecoder
from typing import Any, NoReturn

from dask_fleet.model.errors import BadJSON

MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_NAMES = 50_000
"""Members of all objects together. Names cost more than values: 75,000 different ones hold the interpreter for 30 ms."""
MAX_NUMBER_CHARS = 1_000

_BOM = b"\xef\xbb\xbf"
_BLOCK = MAX_NUMBER_CHARS // 2
_WHITESPACE = " \t\n\r"
_DELETE_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_FINE_TEXT = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?!0000|[dD][89a-fA-F])....|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+", re.DOTALL
)
"""Runs over well-formed JSON up to the first escape that is NUL or half a surrogate pair."""


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # The dictionary has the names in the order of their first coming: where the two orders part, one came again.
        ordered = iter(found)
        for name, _ in pairs:
            if next(ordered, None) is not name:
                raise BadJSON(f"the name {_shown(name)} is given twice in one object")
    return found


def _finite(text: str) -> float:
    if len(text) > MAX_NUMBER_CHARS:
        raise BadJSON(f"a number has more than {MAX_NUMBER_CHARS} characters")
    number = float(text)
    if math.isinf(number):
        raise BadJSON(f"the number {_shown(text, quoted=False)} is too large for a double")
    return number + 0.0  # minus zero becomes zero, as in RFC 8785


def _bounded_int(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise BadJSON(f"an integer has more than {MAX_NUMBER_CHARS} digits")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise BadJSON(f"{name} is not JSON: give null, or leave the parameter out")


_small: Any = JSONDecoder(object_pairs_hook=_unique_names, parse_float=_finite, parse_constant=_no_constant)
_large: Any = JSONDecoder(
    object_pairs_hook=_unique_names, parse_float=_finite, parse_int=_bounded_int, parse_constant=_no_constant
)
_scan_small, _scan_large = _small.scan_once, _large.scan_once  # without the regular expressions around it


def loads(data: bytes, *, max_depth: int = MAX_DEPTH, max_nodes: int = MAX_NODES) -> Any:
    """Return the value that `data` spells.

    ``-0.0`` is read as ``0.0`` (RFC 8785 writes both as ``0``), integers are exact.

    Parameters
    ----------
    data
        The bytes, UTF-8. The caller bounds their number.
    max_depth
        How deep arrays and objects may be nested: ``[]`` is one deep.
    max_nodes
        How many values there may be, counting arrays, objects and all within them, but not the names of
        members, of which there may be `MAX_NAMES`.

    Raises
    ------
    BadJSON
        Naming what is wrong and, where it is known, at which byte.
    """
    size = len(data)
    if size > max_depth or size > max_nodes:
        _check_limits(data, max_depth, max_nodes)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadJSON(f"the body is not UTF-8: see byte {exc.start}") from None
    scan = _scan_large if size > MAX_NUMBER_CHARS and _may_hold_long_number(data) else _scan_small
    try:
        value, end = scan(text, 0)
    except StopIteration:
        value, end = _scan_after_whitespace(text, data, scan)
    except JSONDecodeError as exc:
        raise _malformed(exc.msg, text, exc.pos) from None
    if end != len(text):
        rest = text[end:].lstrip(_WHITESPACE)
        if rest:
            raise _malformed("there is more after the end of the value", text, len(text) - len(rest))
    if b"\\u" in data:
        _check_escapes(data)
    return value


def _may_hold_long_number(data: bytes) -> bool:
    """Look whether there may be more than `MAX_NUMBER_CHARS` digits in a row.

    So many cover a whole block, wherever they begin. Then, and only then, each integer is worth a call of `_bounded_int`.
    """
    return any(data[at : at + _BLOCK].isdigit() for at in range(0, len(data), _BLOCK))


def _scan_after_whitespace(text: str, data: bytes, scan: Any) -> tuple[Any, int]:
    start = len(text) - len(text.lstrip(_WHITESPACE))
    if start == len(text):
        raise BadJSON("the body is empty: the least JSON object is {}")
    if data.startswith(_BOM):
        raise BadJSON("the body begins with a byte order mark, which JSON does not allow")
    try:
        return scan(text, start)  # type: ignore[no-any-return]
    except StopIteration as exc:
        raise _malformed("a value was expected", text, exc.value) from None
    except JSONDecodeError as exc:
        raise _malformed(exc.msg, text, exc.pos) from None


def _malformed(what: str, text: str, position: int) -> BadJSON:
    at = len(text[:position].encode("utf-8"))
    return BadJSON(f"malformed JSON at byte {at}: {what[:1].lower()}{what[1:]}")


def _shown(text: str, *, quoted: bool = True) -> str:
    cut = text if len(text) <= 100 else text[:100] + "…"
    # A name may hold half a surrogate pair, which could not be written into the answer.
    cut = cut.encode("utf-8", "backslashreplace").decode("utf-8")
    return repr(cut) if quoted else cut


def _check_limits(data: bytes, max_depth: int, max_nodes: int) -> None:
    """Refuse what is too deep or has too many values, before the scanner sees it.

    What is inside strings only makes the first, cheap counts too large; then the strings are cut out and it
    is counted exactly.
    """
    openings = data.count(b"[") + data.count(b"{")
    if openings <= max_depth and openings + data.count(b",") < max_nodes and data.count(b":") <= MAX_NAMES:
        return
    outside = _without_strings(data, max_nodes)
    if outside.count(b":") > MAX_NAMES:
        raise BadJSON(f"the objects of the body have more than {MAX_NAMES:,} members together")
    openings = outside.count(b"[") + outside.count(b"{")
    # Each comma and each container that is not empty stands for one value within it; one more is the outermost.
    marks = outside.translate(None, b" \t\n\r")
    nodes = 1 + outside.count(b",") + openings - marks.count(b"[]") - marks.count(b"{}")
    if nodes > max_nodes or openings > max_nodes:
        raise BadJSON(f"the body has more than {max_nodes:,} values")
    if openings > max_depth:
        # More closings than openings cannot be JSON; the scanner stops where they first outnumber them, and so may we.
        brackets = outside.translate(None, _DELETE_BUT_BRACKETS)[: 2 * openings + 1]
        if max(accumulate(map(_STEP.__getitem__, brackets))) > max_depth:
            raise BadJSON(f"the body is nested more than {max_depth} deep")


def _without_strings(data: bytes, max_nodes: int) -> bytes:
    if b'"' not in data:
        return data
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if data.count(b'"') > 4 * max_nodes:  # a value and its name are four quotes
        raise BadJSON(f"the body has more than {max_nodes:,} values")
    return b"s".join(data.split(b'"')[::2])


def _check_escapes(data: bytes) -> None:
    match = _FINE_TEXT.match(data)
    end = match.end() if match is not None else 0
    if end != len(data):
        escape = data[end : end + 6].decode("ascii", "replace")
        if escape.endswith("0000"):
            raise BadJSON(f"the text at byte {end} holds {escape} (NUL), which is not taken")
        raise BadJSON(f"the text at byte {end} holds {escape}, half of a surrogate pair")
