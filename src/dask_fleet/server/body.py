"""Reads request bodies: bounded in size, one by one and together; JSON only, never decompressed.

Their time is the connection's affair (`deadlines`): a body that comes too late looks here like a client that has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from dask_fleet.model.errors import BadRequest, BodyTooLarge, CapacityError, UnsupportedMediaType

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20
_PIECE_BYTES = 32 << 10
SMALL_BODY_BYTES = 64 << 10
"""Up to here a body needs no share of `LARGE_BODIES`, and is decoded on the event loop: in 5 ms at the worst."""
BY_RATE = "dask_fleet.body_by_rate"
"""A route that sets this in its scope takes a body for as long as it comes at a minimum rate, and not for 30 s."""

JSON = b"application/json"
NDJSON = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl"})
"""One JSON value a line."""
_JSON_ONLY = frozenset({JSON})


class ClientDisconnectedError(Exception):
    """The client went away before its body was complete, or was sent away: nobody is left to answer."""


class BodyBudget:
    """How many bytes of large bodies may be in memory at a time. Each waits for its whole share, in the order of coming."""

    def __init__(self, total_bytes: int, *, patience_s: float = 10.0) -> None:
        self._total = self._free = total_bytes
        self._patience_s = patience_s
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, wanted: int) -> int:
        """Take a share (of all there is, at most) and return its size, for `give_back`.

        Raises
        ------
        CapacityError
            If none became free in time.
        """
        share = min(wanted, self._total)
        if not self._queue and share <= self._free:
            self._free -= share
            return share
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((share, turn))
        try:
            async with asyncio.timeout(self._patience_s):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self.give_back(share)  # it came in the very moment of giving up
            else:
                self._queue.remove((share, turn))
                self.give_back(0)  # whoever stood behind may fit
            if isinstance(exc, TimeoutError):
                raise CapacityError("too many large bodies are on their way; send this one again", retry_after_s=1) from None
            raise
        return share

    def give_back(self, share: int) -> None:
        """Give a share back."""
        self._free += share
        while self._queue and self._queue[0][0] <= self._free:
            wanted, turn = self._queue.popleft()
            if not turn.done():
                self._free -= wanted
                turn.set_result(None)


LARGE_BODIES = BodyBudget(16 << 20)
_DECODING = BodyBudget(1, patience_s=30.0)
"""The one place for decoding large bodies: a second thread would only make two of them wait for the interpreter."""


async def decoded(body: bytes, decode: Callable[[bytes], T]) -> T:
    """Return ``decode(body)``; what is large is decoded in a thread, so that the event loop has its turns meanwhile.

    A megabyte made for it (75,000 names in one object, 70,000 floats) takes 70 ms.

    Raises
    ------
    CapacityError
        If too many others are before it. And whatever `decode` raises.
    """
    if len(body) <= SMALL_BODY_BYTES:
        return decode(body)
    turn = await _DECODING.take(1)
    try:
        return await asyncio.to_thread(decode, body)
    finally:
        _DECODING.give_back(turn)


async def read_decoded(
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    decode: Callable[[bytes], T],
    *,
    limit: int = MAX_BODY_BYTES,
    media_types: frozenset[bytes] = _JSON_ONLY,
    budget: BodyBudget = LARGE_BODIES,
) -> T:
    """Return what `decode` makes of the whole body of a request, which may be empty.

    A large body has its share of the budget until it is decoded. `decode` may run in a thread.

    Raises
    ------
    BodyTooLarge
        Before reading anything if ``Content-Length`` says so, else with the message that passes `limit`.
    UnsupportedMediaType
        If the body is compressed, or there is one and it does not say that it is JSON.
    BadRequest
        If ``Content-Length`` is malformed.
    CapacityError
        If it is large and there are too many others.
    ClientDisconnectedError
        If the client went away, or its body did not come in time.
    Exception
        What `decode` raises.
    """
    content_type: bytes | None = None
    expected = limit
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise BadRequest("the Content-Length header is malformed")
            # The number of digits first: a number of a million digits is not worth converting.
            if len(value) > 15 or int(value) > limit:
                raise _too_large(limit)
            expected = int(value)
        elif name == b"content-type":
            content_type = value
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedMediaType("send the body unencoded: compressed request bodies are not taken")
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnectedError
    if message.get("more_body", False):
        pieces = [bytearray(message.get("body", b""))]
        del message  # whoever waits for a share holds what has come of it once, not twice
        async with _Share(budget, expected) as share:
            body = await _collect(receive, pieces, limit, share)
            _check_type(body, content_type, media_types)
            return await decoded(body, decode)
    body = message.get("body", b"")
    if len(body) > limit:
        raise _too_large(limit)
    _check_type(body, content_type, media_types)
    return await decoded(body, decode) if len(body) > SMALL_BODY_BYTES else decode(body)


async def read_body(
    scope: Any,
    receive: Callable[[], Awaitable[Any]],
    *,
    limit: int = MAX_BODY_BYTES,
    media_types: frozenset[bytes] = _JSON_ONLY,
    budget: BodyBudget = LARGE_BODIES,
) -> bytes:
    """Return the whole body of a request, as it is. Raises what `read_decoded` does."""
    return await read_decoded(scope, receive, _as_it_is, limit=limit, media_types=media_types, budget=budget)


def _as_it_is(body: bytes) -> bytes:
    return body


def _check_type(body: bytes, content_type: bytes | None, media_types: frozenset[bytes]) -> None:
    if content_type != JSON and (body or content_type is not None) and base_type(content_type) not in media_types:
        named = " or ".join(f"'Content-Type: {name.decode()}'" for name in sorted(media_types, reverse=True)[:2])
        raise UnsupportedMediaType(f"send the parameters as JSON with the header {named}")


class _Share:
    """A body's part of the budget, taken when it is found to be large and given back whatever happens."""

    def __init__(self, budget: BodyBudget, expected: int) -> None:
        self._budget = budget
        self._expected = expected
        self._taken = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._taken:
            self._budget.give_back(self._taken)

    async def cover(self, size: int) -> None:
        if size > SMALL_BODY_BYTES and not self._taken:
            self._taken = await self._budget.take(max(size, self._expected))


async def _collect(receive: Callable[[], Awaitable[Any]], pieces: list[bytearray], limit: int, share: _Share) -> bytes:
    """Return the whole body.

    In pieces until then: many bodies that grow side by side, each in one piece, would leave gaps in the heap. Of some size:
    one that comes in a million chunks of a byte would take fifty times its own.
    """
    size, more = len(pieces[0]), True
    while more:
        if size > limit:
            raise _too_large(limit)
        await share.cover(size)
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
    return b"".join(pieces)


def base_type(content_type: bytes | None) -> bytes:
    """Return a media type without its parameters, in lower case; nothing for none."""
    return b"" if content_type is None else content_type.partition(b";")[0].strip().lower()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", limit=limit)
