"""Query strings, taken strictly: a misspelt filter must not silently become no filter."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qsl

from starlette.requests import Request

from dask_fleet.model.errors import BadRequest

MAX_WAIT_S = 60

_SECONDS = re.compile(r"[0-9]{1,2}\Z")
_MAX_VALUE_CHARS = 1000


def query_of(request: Request, known: Collection[str]) -> dict[str, str]:
    """Return the query parameters of a request.

    Raises
    ------
    BadRequest
        Naming what is unknown, given twice, too long, or not UTF-8.
    """
    raw: bytes = request.scope["query_string"]
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), max_num_fields=50, errors="strict"
        )
    except ValueError as exc:
        raise BadRequest("the query string is malformed") from exc
    unknown = sorted({name for name, _ in pairs} - set(known))
    if unknown:
        takes = ", ".join(sorted(known)) or "none"
        raise BadRequest(f"unknown query parameters: {', '.join(name[:40] for name in unknown)}; this page takes {takes}")
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(f"the query parameter {name} is given more than once")
        if len(value) > _MAX_VALUE_CHARS or "\0" in value:
            raise BadRequest(f"the query parameter {name} is too long or contains NUL")
        found[name] = value
    return found


def wait_s(query: dict[str, str]) -> float:
    """Return the seconds of ``?wait=``, 0 without it.

    Raises
    ------
    BadRequest
        If it is not a whole number from 0 to `MAX_WAIT_S`.
    """
    text = query.get("wait")
    if text is None:
        return 0.0
    if not _SECONDS.match(text) or int(text) > MAX_WAIT_S:
        raise BadRequest(f"the query parameter wait must be a whole number of seconds from 0 to {MAX_WAIT_S}")
    return float(text)
