"""Long answers: closed with the client, the end, or an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.unit.server.rig import Exchange, run

from dask_fleet.server.streaming import Streamed


class Body:
    def __init__(self, *pieces: bytes, then: str = "end") -> None:
        self._pieces = pieces
        self._then = then
        self.closed = False

    async def read(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self._pieces:
                yield piece
            if self._then == "hang":
                await asyncio.Event().wait()
            if self._then == "raise":
                raise RuntimeError("broke")
        finally:
            self.closed = True


def test_pieces_become_one_answer() -> None:
    async def main() -> None:
        body = Body(b"a", b"", b"b")
        async with Exchange(Streamed(body.read(), headers={"Content-Length": "2"}), "GET", "/") as exchange:
            assert await exchange.whole() == b"ab"
        assert exchange.headers["content-length"] == "2"
        assert body.closed

    run(main())


def test_without_a_length_none_is_claimed() -> None:
    async def main() -> None:
        async with Exchange(Streamed(Body(b"a").read()), "GET", "/") as exchange:
            await exchange.whole()
        assert "content-length" not in exchange.headers

    run(main())


def test_a_client_that_leaves_closes_the_body() -> None:
    async def main() -> None:
        body = Body(b"a", then="hang")
        async with Exchange(Streamed(body.read()), "GET", "/") as exchange:
            await exchange.contains(b"a")
            assert not body.closed
        assert body.closed
        assert not exchange.ended

    run(main())


def test_an_error_breaks_the_answer_off() -> None:
    async def main() -> None:
        body = Body(b"a", then="raise")
        with pytest.raises(RuntimeError, match="broke"):
            async with Exchange(Streamed(body.read()), "GET", "/") as exchange:
                await exchange.contains(b"a")
        assert body.closed
        assert not exchange.ended

    run(main())


def test_cancelling_the_request_closes_the_body() -> None:
    async def main() -> None:
        body = Body(b"a", then="hang")
        exchange = Exchange(Streamed(body.read()), "GET", "/")
        await exchange.__aenter__()
        await exchange.contains(b"a")
        assert exchange.task is not None
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        assert body.closed

    run(main())
