"""What a path does with each method: one table a path, so that HEAD, OPTIONS and 405 are the same everywhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dask_fleet.model.errors import MethodNotAllowed

Handler = Callable[[Request], Awaitable[Response]]


class Methods:
    """An ASGI application for one path: ``Methods(GET=show, DELETE=cancel)``.

    ``HEAD`` comes with ``GET``, ``OPTIONS`` with all; anything else raises `MethodNotAllowed` with what is allowed.
    """

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = handlers
        names = {*handlers, "OPTIONS"} | ({"HEAD"} if "GET" in handlers else set())
        self.allow = sorted(names)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        method = scope["method"]
        if method == "OPTIONS":
            response = Response(status_code=204, headers={"Allow": ", ".join(self.allow)})
        else:
            handler = self._handlers.get("GET" if method == "HEAD" else method)
            if handler is None:
                raise MethodNotAllowed(f"this page takes {', '.join(self.allow)}", allow=self.allow)
            response = await handler(Request(scope, receive, send))
        await response(scope, receive, _without_body(send) if method == "HEAD" else send)


def _without_body(send: Any) -> Any:
    """Let an answer's head through and keep its body back, as HEAD wants it."""

    async def send_head(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
