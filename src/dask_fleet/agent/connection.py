"""One websocket to the server, by the sans-I/O protocol of ``websockets``.

Straight on an asyncio protocol: a message costs a callback instead of a queue, a task switch and two awaits, which is what
limits calls per second. What becomes ready in one turn of the event loop leaves as one message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
from websockets.frames import CloseCode, Opcode
from websockets.frames import Frame as WireFrame
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from dask_fleet.protocol.frames import (
    MAX_MESSAGE_BYTES,
    AgentFrame,
    Outcome,
    ServerFrame,
    decode_from_server,
    encode_batch,
)

log = logging.getLogger(__name__)

_SPLIT_ABOVE_BYTES = MAX_MESSAGE_BYTES // 4
_OVERHEAD_BYTES = 1 << 10


class Refused(Exception):
    """The server answered the handshake with a status; trying again unchanged helps only for some."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answered {status}")
        self.status = status

    @property
    def is_final(self) -> bool:
        """Whether the token is at fault."""
        return self.status in {401, 403}


class Connection(asyncio.Protocol):
    """Frames in, frames out. `closed` is done when nothing can pass any more; its result says why."""

    def __init__(self, uri: str, token: str, on_frames: Callable[[list[ServerFrame]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._websocket = ClientProtocol(parse_uri(uri), max_size=MAX_MESSAGE_BYTES)
        self._token = token
        self._on_frames = on_frames
        self._transport: asyncio.Transport | None = None
        self._batch: list[AgentFrame] = []
        self._batch_bytes = 0
        self._full: list[list[AgentFrame]] = []
        """Batches large enough for a message of their own, which gather while the server reads slower than we write."""
        self._flush_planned = False
        self._paused = False
        self._fragments: list[bytes] = []
        self.open: asyncio.Future[None] = self._loop.create_future()
        """Done when the handshake is; raises `Refused`, or `ConnectionError` if it got no answer."""
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.heard_at = self._loop.time()
        """When the last byte arrived (monotonic)."""

    @property
    def refusal(self) -> str | None:
        """What the server said when it closed because of what we speak, which no further try changes; else ``None``."""
        told = self._websocket.close_rcvd
        return told.reason if told is not None and told.code == CloseCode.PROTOCOL_ERROR else None

    @property
    def local_host(self) -> str:
        """The address of this end."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) and name else ""

    # ------------------------------------------------------------------ out

    def send(self, frame: AgentFrame) -> None:
        """Send a frame with this turn's message; dropped if the connection is closed."""
        if self.closed.done():
            return
        self._batch.append(frame)
        if type(frame) is Outcome:
            self._batch_bytes += _OVERHEAD_BYTES + len(frame.body or b"") + len(frame.json or b"")
            if self._batch_bytes > _SPLIT_ABOVE_BYTES:
                self._full.append(self._batch)
                self._batch, self._batch_bytes = [], 0
                self._flush()
                return
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def ping(self) -> None:
        """Make the other side send something."""
        if not self.closed.done() and self._websocket.state is State.OPEN:
            self._websocket.send_ping(b"")
            self._write()

    def close(self, reason: str) -> None:
        """Close; frames of this turn still leave."""
        if self.closed.done() or self._transport is None:
            return
        self._flush()
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(1000, reason)
            self._write()
        self._transport.close()

    def abort(self, reason: str) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._paused or self._websocket.state is not State.OPEN:
            return
        batches, self._full = self._full, []
        if self._batch:
            batches.append(self._batch)
            self._batch, self._batch_bytes = [], 0
        for batch in batches:
            self._websocket.send_binary(encode_batch(batch))
        self._write()

    def _write(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:  # the sans-I/O way of saying: half-close
                self._transport.close()

    # ------------------------------------------------------------------ in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        request = self._websocket.connect()
        request.headers["Authorization"] = f"Bearer {self._token}"
        self._websocket.send_request(request)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Hand over what arrived."""
        self.heard_at = self._loop.time()
        self._websocket.receive_data(data)
        self._handle_events()
        self._write()

    def eof_received(self) -> bool:
        """The server has said all it had to."""
        self._websocket.receive_eof()
        self._handle_events()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing passes any more."""
        self._end(str(exc) if exc else "the server closed the connection")

    def pause_writing(self) -> None:
        """The server reads slower than we write; frames gather until it has caught up."""
        self._paused = True

    def resume_writing(self) -> None:
        """The server has caught up."""
        self._paused = False
        self._flush()

    def _handle_events(self) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, WireFrame):
                self._handle_frame(event)
            elif isinstance(event, Response) and self._websocket.handshake_exc is None:
                self.open.set_result(None)
        failed = self._websocket.handshake_exc
        if failed is not None and not self.open.done():
            self.open.set_exception(_as_refusal(failed))
            self.abort("the handshake failed")

    def _handle_frame(self, frame: WireFrame) -> None:
        if frame.opcode not in {Opcode.BINARY, Opcode.CONT}:
            return
        message: Any = frame.data
        if not frame.fin or self._fragments:
            self._fragments.append(bytes(message))
            if not frame.fin:
                return
            message = b"".join(self._fragments)
            self._fragments.clear()
        try:
            frames = decode_from_server(message)
        except msgspec.MsgspecError as exc:
            log.warning("unreadable message from the server: %s", exc, extra={"action": "protocol_error"})
            self.abort("unreadable message")
            return
        self._on_frames(frames)

    def _end(self, reason: str) -> None:
        if not self.open.done():
            self.open.set_exception(ConnectionError(reason))
            self.open.exception()  # whoever awaits it gets it; nobody need
        if not self.closed.done():
            self.closed.set_result(reason)


def _as_refusal(exc: Exception) -> Exception:
    if isinstance(exc, InvalidStatus):
        return Refused(exc.response.status_code)
    if isinstance(exc, (InvalidHandshake, WebSocketException)):
        return ConnectionError(f"no websocket handshake: {exc}")
    return exc
