"""Conditional and partial requests (RFC 9110, sections 13 and 14): decided here, acted on by the result's route."""

from __future__ import annotations

import re

from dask_fleet.model.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*\Z", re.IGNORECASE)
_TAGS = re.compile(r'\s*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|\Z)')


def part(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the asked part of `size` bytes as start and stop (exclusive), or ``None`` for all of them.

    Several ranges at once, other units and malformed headers are answered with everything, as the RFC allows.

    Raises
    ------
    RangeNotSatisfiable
        If the range lies outside; ``size`` tells how much there is.
    """
    found = _RANGE.match(header.strip()) if header else None
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        length = int(found[2])
        if length == 0 or size == 0:
            raise _outside(size)
        return max(0, size - length), size
    start = int(found[1])
    stop = int(found[2]) + 1 if found[2] else size
    if stop <= start and found[2]:
        return None
    if start >= size:
        raise _outside(size)
    return start, min(stop, size)


def names_tag(header: str, etag: str, *, weakly: bool) -> bool:
    """Return whether an ``If-Match`` (`weakly` false) or ``If-None-Match`` (true) header names the strong tag `etag`.

    ``*`` names every tag; a weak tag never matches strongly.
    """
    if header.strip() == "*":
        return True
    position = 0
    while position < len(header) and (found := _TAGS.match(header, position)):
        if found[2] == etag and (weakly or not found[1]):
            return True
        position = found.end()
    return False


def range_applies(if_range: str | None, etag: str) -> bool:
    """Return whether ``Range`` may be honoured under this ``If-Range``.

    Only a strong tag says that the rest fits to what the caller has; a date never does, since results carry none.
    """
    return if_range is None or if_range.strip() == etag


def _outside(size: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(f"the range lies outside the {size} bytes of the result", size=size)
