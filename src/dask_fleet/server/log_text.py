"""Logs on their way out: which parts are asked for, and how they stand one after the other. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dask_fleet.model.errors import BadRequest
from dask_fleet.model.logs import MAX_LOG_BYTES, LogStream

MAX_TAIL_LINES = 100_000
MAX_ATTEMPTS = 100
"""Of a job with more, the latest are looked at."""


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a request for logs asks for."""

    streams: tuple[LogStream, ...]
    attempt: int | None = None
    """``None``: the latest."""
    tail: int | None = None
    offset: int | None = None
    """Of a single stream: what it has from there on."""


def parse_log_query(query: Mapping[str, str]) -> LogQuery:
    """Return what the parameters ``stream``, ``attempt``, ``tail`` and ``offset`` mean.

    Raises
    ------
    BadRequest
        Naming the parameter that is malformed.
    """
    stream = query.get("stream", "all")
    if stream != "all" and stream not in set(LogStream):
        raise BadRequest(f"the query parameter stream must be one of {', '.join(LogStream)} or all")
    offset = _whole(query, "offset", 0, MAX_LOG_BYTES)
    if offset is not None and stream == "all":
        raise BadRequest("the query parameter offset needs a single stream beside it: stream=stdout, stderr or log")
    if offset is not None and "tail" in query:
        raise BadRequest("the query parameters offset and tail exclude each other")
    return LogQuery(
        streams=tuple(LogStream) if stream == "all" else (LogStream(stream),),
        attempt=_whole(query, "attempt", 1, 10**9 - 1),
        tail=_whole(query, "tail", 0, MAX_TAIL_LINES),
        offset=offset,
    )


def last_attempts(latest: int) -> range:
    """Return the attempts whose logs are looked at."""
    return range(max(1, latest - MAX_ATTEMPTS + 1), latest + 1)


def last_lines(data: bytes, count: int) -> bytes:
    """Return the last `count` lines; a last one without its end counts."""
    if count == 0:
        return b""
    position = len(data) - data.endswith(b"\n")
    for _ in range(count):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return data
    return data[position + 1 :]


def joined(parts: Mapping[LogStream, bytes], attempt: int) -> bytes:
    """Return streams as one text: one alone as it is, several each below a line with its name, as ``tail`` shows files."""
    filled = {stream: data for stream, data in parts.items() if data}
    if len(filled) < 2:
        return b"".join(filled.values())
    pieces = []
    for stream, data in filled.items():
        end = b"" if data.endswith(b"\n") else b"\n"
        pieces.append(b"==> attempt %d %s <==\n%s%s" % (attempt, stream.encode("ascii"), data, end))
    return b"\n".join(pieces)


def _whole(query: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise BadRequest(f"the query parameter {name} must be a whole number from {low} to {high}")
    return int(text)
