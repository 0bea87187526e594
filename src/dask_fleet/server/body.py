"""Reads request bodies: bounded in size, one by one and together; JSON only, never decompressed.

Their time is the connection's affair (`deadlines`): a body that comes too late looks here like a client that has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from dask_fleet.model.errors import BadRequest, BodyTooLarge, UnsupportedMediaType
from dask_fleet.server.body_budget import SMALL_BODY_BYTES, BodyBudget, Reservation
from dask_fleet.server.fair_gate import FairGate

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20
_PIECE_BYTES = 32 << 10
BY_RATE = "dask_fleet.body_by_rate"
"""A route that sets this in its scope takes a body for as long as it comes at a minimum rate, and not for 30 s."""

JSON = b"application/json"
NDJSON = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl"})
"""One JSON value a line."""
_JSON_ONLY = frozenset({JSON})


class ClientDisconnectedError(Exception):
    """The client went away before its body was complete, or was sent away: nobody is left to answer."""


LARGE_BODIES = BodyBudget(16 << 20)
"""Of singles and batches; and one body more, of whatever size is taken (`shares`)."""
_DECODING = FairGate(1, per_user=1, patience_s=30.0, refusal="too many large bodies are being decoded: send this one again")
"""The one place for decoding large bodies: a second thread would only make two of them wait for the interpreter."""


async def decoded(body: bytes, decode: Callable[[bytes], T], user: Hashable = None) -> T:
    """Return ``decode(body)``; what is large is decoded in a thread, so that the event loop has its turns meanwhile.

    A megabyte made for it (75,000 names in one object, 70,000 floats) takes 70 ms.

    Raises
    ------
    CapacityError
        If too many others are before it. And whatever `decode` raises.
    """
    if len(body) <= SMALL_BODY_BYTES:
        return decode(body)
    async with _DECODING.place(user):
        return await asyncio.to_thread(decode, body)


async def read_decoded(
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    decode: Callable[[bytes], T],
    *,
    limit: int = MAX_BODY_BYTES,
    media_types: frozenset[bytes] = _JSON_ONLY,
    user: Hashable = None,
    budget: BodyBudget = LARGE_BODIES,
) -> T:
    """Return what `decode` makes of the whole body of a request, which may be empty.

    A large body has its share of the budget, on the account of `user`, until it is decoded. `decode` may run in a thread.

    Raises
    ------
    BodyTooLarge
        Before reading anything if ``Content-Length`` says so, else with the message that passes `limit`.
    UnsupportedMediaType
        If the body is compressed, or there is one and it does not say that it is JSON.
    BadRequest
        If ``Content-Length`` is malformed.
    CapacityError
        If it is large and there are too many others, or it comes too slowly while others wait.
    ClientDisconnectedError
        If the client went away, or its body did not come in time.
    Exception
        What `decode` raises.
    """
    content_type = _check_head(scope, limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnectedError
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        pieces = [bytearray(body)]
        del message, body  # whoever waits for a share holds what has come of it once, not twice
        async with budget.reserve(user) as place:
            body = await _collect(receive, pieces, limit, place)
            _check_type(body, content_type, media_types)
            return await decoded(body, decode, user)
    if len(body) > limit:
        raise _too_large(limit)
    _check_type(body, content_type, media_types)
    return await decoded(body, decode, user) if len(body) > SMALL_BODY_BYTES else decode(body)


async def read_into(
    place: Reservation,
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    *,
    limit: int = MAX_BODY_BYTES,
    media_types: frozenset[bytes] = _JSON_ONLY,
) -> bytes:
    """Return the whole body of a request, whose share of the budget the caller keeps for as long as it needs the body.

    Raises what `read_decoded` does.
    """
    content_type = _check_head(scope, limit)
    body = await _collect(receive, [bytearray()], limit, place)
    _check_type(body, content_type, media_types)
    return body


async def read_body(
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    *,
    limit: int = MAX_BODY_BYTES,
    media_types: frozenset[bytes] = _JSON_ONLY,
    user: Hashable = None,
    budget: BodyBudget = LARGE_BODIES,
) -> bytes:
    """Return the whole body of a request, as it is. Raises what `read_decoded` does."""
    return await read_decoded(scope, receive, _as_it_is, limit=limit, media_types=media_types, user=user, budget=budget)


def _as_it_is(body: bytes) -> bytes:
    return body


def _check_head(scope: Any, limit: int) -> bytes | None:
    """Refuse what can be refused before anything is read; return the content type."""
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
    return content_type


def _check_type(body: bytes, content_type: bytes | None, media_types: frozenset[bytes]) -> None:
    if content_type != JSON and (body or content_type is not None) and base_type(content_type) not in media_types:
        named = " or ".join(f"'Content-Type: {name.decode()}'" for name in sorted(media_types, reverse=True)[:2])
        raise UnsupportedMediaType(f"send the parameters as JSON with the header {named}")


async def _collect(receive: Callable[[], Awaitable[Any]], pieces: list[bytearray], limit: int, place: Reservation) -> bytes:
    """Return the whole body.

    In pieces until then: many bodies that grow side by side, each in one piece, would leave gaps in the heap. Of some size:
    one that comes in a million chunks of a byte would take fifty times its own.
    """
    size, more = len(pieces[0]), True
    while more:
        if size > limit:
            raise _too_large(limit)
        await place.cover(size)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        piece = message.get("body", b"")
        if len(pieces[-1]) < _PIECE_BYTES:
            pieces[-1] += piece
        else:
            pieces.append(bytearray(piece))
        size += len(piece)
        more = message.get("more_body", False)
        del message, piece
    if size > limit:
        raise _too_large(limit)
    await place.cover(size)
    place.complete()
    return b"".join(pieces)


def base_type(content_type: bytes | None) -> bytes:
    """Return a media type without its parameters, in lower case; nothing for none."""
    return b"" if content_type is None else content_type.partition(b";")[0].strip().lower()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", limit=limit)
