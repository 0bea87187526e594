"""Reads request bodies: bounded in size and time, JSON only, never decompressed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from dask_fleet.model.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
"""From the first look at the body to its last byte."""

_JSON = b"application/json"


class ClientDisconnectedError(Exception):
    """The client went away before its body was complete: nobody is left to answer."""


async def read_body(
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    *,
    limit: int = MAX_BODY_BYTES,
    timeout_s: float = BODY_TIMEOUT_S,
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
    if (body or content_type is not None) and not _is_json(content_type):
        raise UnsupportedMediaType("send the parameters as JSON with the header 'Content-Type: application/json'")
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


def _is_json(content_type: bytes | None) -> bool:
    if content_type == _JSON:
        return True
    if content_type is None:
        return False
    return content_type.partition(b";")[0].strip().lower() == _JSON


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", limit=limit)
