"""Reading bodies: no more than the limit, together no more than the budget, JSON only."""

from __future__ import annotations

import asyncio
import gzip
import threading
import tracemalloc
from typing import Any

import pytest

from dask_fleet.model.errors import BadRequest, BodyTooLarge, UnsupportedMediaType
from dask_fleet.server.body import (
    MAX_BODY_BYTES,
    ClientDisconnectedError,
    read_body,
    read_decoded,
)
from dask_fleet.server.body_budget import SMALL_BODY_BYTES, BodyBudget

JSON = (b"content-type", b"application/json")


class Client:
    """Gives a body in pieces and counts how many were asked for; after the last it says nothing more."""

    def __init__(self, *pieces: bytes, then: dict[str, Any] | None = None) -> None:
        self.pieces = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if then is None:
            if self.pieces:
                self.pieces[-1]["more_body"] = False
        else:
            self.pieces.append(then)
        self.asked = 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked > len(self.pieces):
            await asyncio.Event().wait()
        return self.pieces[self.asked - 1]


def read(client: Client, *headers: tuple[bytes, bytes], **rest: Any) -> bytes:
    return asyncio.run(read_body({"headers": list(headers)}, client, **rest))


@pytest.mark.parametrize(
    "content_type",
    [b"application/json", b"application/json; charset=utf-8", b"Application/JSON;charset=UTF-8", b" application/json "],
)
@pytest.mark.parametrize("pieces", [(b'{"n":1}',), (b'{"n"', b":1}"), (b"", b'{"n":1}', b"")])
def test_a_json_body_comes_whole(content_type: bytes, pieces: tuple[bytes, ...]) -> None:
    assert read(Client(*pieces), (b"content-type", content_type)) == b'{"n":1}'


def test_a_body_in_tiny_pieces_takes_no_more_memory_than_in_one() -> None:
    piece, count = b" 1", 50_000
    message = {"type": "http.request", "body": piece, "more_body": True}
    left = iter(range(count))

    async def receive() -> dict[str, Any]:
        number = next(left)
        # A copy each, as the server makes one of what comes.
        return {**message, "body": bytes(bytearray(piece)), "more_body": number < count - 1}

    async def main() -> tuple[bytes, int]:
        tracemalloc.start()
        try:
            return await read_body({"headers": [JSON]}, receive), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    body, peak = asyncio.run(main())
    assert body == piece * count
    assert peak < 4 * len(body), "twice: in pieces, and whole"


def test_no_body_needs_no_type() -> None:
    assert read(Client(b"")) == b""
    assert read(Client(b""), (b"content-length", b"0")) == b""
    assert read(Client(b""), JSON) == b""


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"content-type", b"text/plain"),),
        ((b"content-type", b"application/x-www-form-urlencoded"),),
        ((b"content-type", b"multipart/form-data; boundary=x"),),
        ((b"content-type", b"application/jsonp"),),
        ((b"content-type", b"text/json"),),
        ((b"content-type", b""),),
    ],
)
def test_other_types_are_refused(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(UnsupportedMediaType):
        read(Client(b"{}"), *headers)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"gzip, identity", b"x"])
def test_compressed_bodies_are_refused_before_they_are_read(encoding: bytes) -> None:
    client = Client(gzip.compress(b"[" * 10_000_000))
    with pytest.raises(UnsupportedMediaType):
        read(client, JSON, (b"content-encoding", encoding))
    assert client.asked == 0


def test_identity_is_no_compression() -> None:
    assert read(Client(b"{}"), JSON, (b"content-encoding", b"identity")) == b"{}"


def test_an_honest_length_over_the_limit_is_refused_before_reading() -> None:
    client = Client(b"x")
    with pytest.raises(BodyTooLarge):
        read(client, JSON, (b"content-length", str(MAX_BODY_BYTES + 1).encode()))
    assert client.asked == 0


@pytest.mark.parametrize("length", [b"9" * 5000, b"1e9", b"-1", b"0x10", b"1,2", b"", "²".encode()])
def test_odd_lengths_are_refused(length: bytes) -> None:
    with pytest.raises((BodyTooLarge, BadRequest)):
        read(Client(b"{}"), JSON, (b"content-length", length))


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
@pytest.mark.parametrize("pieces", [1, 7])
def test_the_limit_is_exact(size: int, fits: bool, pieces: int) -> None:
    body = b"x" * size
    step = -(-size // pieces)
    client = Client(*(body[start : start + step] for start in range(0, size, step)))
    if fits:
        assert read(client, JSON, limit=100) == body
    else:
        with pytest.raises(BodyTooLarge):
            read(client, JSON, limit=100)


def test_a_lying_or_unknown_length_is_read_to_the_limit_and_no_further() -> None:
    piece = b"x" * 65_536
    client = Client(*[piece] * 1_000)
    with pytest.raises(BodyTooLarge):
        read(client, JSON, (b"content-length", b"10"))
    assert client.asked * len(piece) <= MAX_BODY_BYTES + len(piece)


def test_a_client_that_leaves_is_not_a_body() -> None:
    for pieces in ((), (b"{",)):
        with pytest.raises(ClientDisconnectedError):
            read(Client(*pieces, then={"type": "http.disconnect"}), JSON)


def test_a_large_body_is_decoded_beside_the_loop_and_keeps_its_share_until_then() -> None:
    """The loop has its turns while a megabyte is decoded; a small body is not worth the way to a thread."""
    threads: list[int] = []

    def decode(body: bytes) -> int:
        threads.append(threading.get_ident())
        if len(body) > SMALL_BODY_BYTES:
            assert free.wait(20), "the loop stood still"
        return len(body)

    free = threading.Event()
    budget = BodyBudget(1 << 20)

    async def main() -> None:
        scope = {"headers": [JSON]}
        large = Client(*[b" " * SMALL_BODY_BYTES] * 3)
        task = asyncio.create_task(read_decoded(scope, large, decode, budget=budget))
        while not threads:  # noqa: ASYNC110 - another thread changes it
            await asyncio.sleep(0.001)
        assert budget.figures()["large_body_bytes"] == 3 * SMALL_BODY_BYTES
        assert await read_decoded(scope, Client(b"{}"), decode) == 2
        free.set()
        assert await task == 3 * SMALL_BODY_BYTES
        assert budget.figures()["large_body_bytes"] == 0

    asyncio.run(main())
    assert threads[0] != threads[1] == threading.get_ident()


def test_what_is_wrong_with_a_large_body_is_told() -> None:
    def refuse(_body: bytes) -> None:
        raise BadRequest("no")

    async def main() -> None:
        for _ in range(2):  # the place for decoding is given back
            with pytest.raises(BadRequest, match="no"):
                await read_decoded({"headers": [JSON]}, Client(b" " * (SMALL_BODY_BYTES + 1)), refuse)

    asyncio.run(main())
