"""Reads request bodies: bounded in size and time, JSON only, never decompressed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from dask_fleet.model.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
"""From the first look at the body to its last byte."""

JSON = b"application/json"
NDJSON = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl"})
"""One JSON value a line."""
_JSON_ONLY = frozenset({JSON})


class ClientDisconnectedError(Exception):
    """The client went away before its body was complete: nobody is left to answer."""


async def read_body(
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    *,
    limit: int = MAX_BODY_BYTES,
    timeout_s: float = BODY_TIMEOUT_S,
    media_types: frozenset[bytes] = _JSON_ONLY,
) -> bytes:
    """Return the whole body of a request, which may be empty.

    Raises
    ------
    BodyTooLarge
        Before reading anything if ``Content-Length`` says so, else with the message that passes `limit`.
    UnsupportedMediaType
        If the body is compressed, or there is one and it does not say that it is JSON.
    BadRequest
        If ``Content-Length`` is malformed, or the body takes longer than `timeout_s`.
    ClientDisconnectedError
        If the client went away.
    """
    content_type: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise BadRequest("the Content-Length header is malformed")
            # The number of digits first: a number of a million digits is not worth converting.
            if len(value) > 15 or int(value) > limit:
                raise _too_large(limit)
        elif name == b"content-type":
            content_type = value
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedMediaType("send the body unencoded: compressed request bodies are not taken")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _collect(receive, limit)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {timeout_s:g} s", retry_after_s=1) from None
    if content_type != JSON and (body or content_type is not None) and base_type(content_type) not in media_types:
        named = " or ".join(f"'Content-Type: {name.decode()}'" for name in sorted(media_types, reverse=True)[:2])
        raise UnsupportedMediaType(f"send the parameters as JSON with the header {named}")
    return body


async def _collect(receive: Callable[[], Awaitable[Any]], limit: int) -> bytes:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnectedError
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    pieces = bytearray(body)
    while True:
        if len(pieces) > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        pieces += message.get("body", b"")
        if not message.get("more_body", False):
            break
    if len(pieces) > limit:
        raise _too_large(limit)
    return bytes(pieces)


def base_type(content_type: bytes | None) -> bytes:
    """Return a media type without its parameters, in lower case; nothing for none."""
    return b"" if content_type is None else content_type.partition(b";")[0].strip().lower()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", limit=limit)
