"""Long answers: sent piece by piece, given up when the client leaves.

A client that stops reading is one that leaves: the connection's watch (`deadlines`) sees to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response


class Streamed(Response):
    """An answer whose body comes from an async generator, which is closed whatever happens."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(status_code=status_code, headers=headers, media_type=media_type)
        if headers is None or "content-length" not in {name.lower() for name in headers}:
            # The base class counted its own empty body.
            del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send head and pieces until they end or the client goes."""
        async with aclosing(self._pieces):
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
                return
            sender = asyncio.create_task(self._send_all(send), name="stream-sender")
            watcher = asyncio.create_task(_gone(receive), name="stream-watcher")
            try:
                await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sender_done = sender.done()
                for task in (sender, watcher):
                    task.cancel()
                await asyncio.gather(sender, watcher, return_exceptions=True)
            if sender_done:
                sender.result()

    async def _send_all(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._pieces:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Any) -> None:
    """Return when the client has disconnected; what it still sends is nothing we want."""
    while (await receive())["type"] != "http.disconnect":
        pass
