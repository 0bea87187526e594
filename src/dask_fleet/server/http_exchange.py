"""One request and its answer on a connection. The answer's head is ours: one piece, with the headers that all have."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from dask_fleet.server.edge import DEFAULT_CACHE_CONTROL, DEFAULT_POLICY

_NO_BODY = frozenset({204, 304})


class Exchange(RequestResponseCycle):
    """uvicorn's cycle of request and response, with a cheaper and stricter `send`."""

    common_head: bytes = b""

    async def send(self, message: Any) -> None:
        """Send a part of the answer.

        Raises
        ------
        RuntimeError
            If the application sends what does not come now, or a header that would break out of its line.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"the answer must begin with its head, not with {kind}")
            self._send_head(message["status"], message.get("headers", ()))
        elif kind != "http.response.body" or self.response_complete:
            raise RuntimeError(f"{kind} does not come here")
        else:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def _send_head(self, status: int, headers: Any) -> None:
        lines = [b"%s: %s" % (name, value) for name, value in headers]
        block = b"\r\n".join(lines)
        # One look at the whole instead of one at each: a line break that is not ours is somebody else's header.
        if block.count(b"\n") >= max(1, len(lines)) or block.count(b"\r") >= max(1, len(lines)) or b"\0" in block:
            raise RuntimeError("a header of the answer holds a line break or NUL")
        pieces = [STATUS_LINE[status], self.common_head]
        cached = policed = closing = False
        for name, value in headers:
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"cache-control":
                cached = True
            elif name == b"content-security-policy":
                policed = True
            elif name == b"connection" and value == b"close":
                closing = True
                self.keep_alive = False
        if lines:
            pieces += (block, b"\r\n")
        if not cached:
            pieces.append(DEFAULT_CACHE_CONTROL)
        if not policed:
            pieces.append(DEFAULT_POLICY)
        if not (self.keep_alive or closing):
            pieces.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            pieces.append(b"transfer-encoding: chunked\r\n")
        pieces.append(b"\r\n")
        self.response_started = True
        self.waiting_for_100_continue = False
        self.transport.write(b"".join(pieces))

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            piece = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            if not more:
                piece += b"0\r\n\r\n"
            if piece:
                self.transport.write(piece)
        elif len(body) > self.expected_content_length:
            raise RuntimeError("the answer's body is longer than its Content-Length")
        elif body:
            self.expected_content_length -= len(body)
            self.transport.write(body)
        if not more:
            if self.expected_content_length:
                raise RuntimeError("the answer's body is shorter than its Content-Length")
            self.response_complete = True
            self.message_event.set()
            self.on_response(self)
