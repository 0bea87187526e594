"""``/v1/agents``: the websocket on which agents dial home. Frames that become ready together travel together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dask_fleet.controller.agents import AgentHandle
from dask_fleet.controller.controller import Controller
from dask_fleet.controller.sessions import OtherProtocol
from dask_fleet.model.errors import ProtocolError
from dask_fleet.protocol.frames import (
    HEARTBEAT_S,
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    AgentFrame,
    Hello,
    ServerFrame,
    decode_from_agent,
    encode_batch,
    introduction,
)

log = logging.getLogger(__name__)

AGENTS_PATH = "/v1/agents"
HELLO_TIMEOUT_S = 10.0
SILENCE_S = 4 * HEARTBEAT_S
"""After so long without a frame the connection is taken for dead; the agent goes on and reconnects."""

_GOING_AWAY, _PROTOCOL_ERROR = 1001, 1002  # close codes of RFC 6455

Receive = Callable[[], Awaitable[Any]]
SendMessage = Callable[[Any], Awaitable[None]]


class _Outbox:
    """Collects frames of one loop tick and writes them as one message."""

    def __init__(self, send: SendMessage) -> None:
        self._send = send
        self._frames: list[ServerFrame] = []
        self._filled = asyncio.Event()

    def put(self, frame: ServerFrame) -> None:
        self._frames.append(frame)
        self._filled.set()

    async def write_forever(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            frames, self._frames = self._frames, []
            for message in _messages(frames):
                await self._send({"type": "websocket.send", "bytes": message})


def _messages(frames: list[ServerFrame]) -> list[bytes]:
    """Encode frames to as few messages as the size limit allows.

    A frame that cannot be encoded is left out, whatever has let it come so far: it must not silence the server to an agent
    that others' jobs are on.
    """
    try:
        message = encode_batch(frames)
    except Exception:
        if len(frames) == 1:
            kind = type(frames[0]).__name__
            log.exception("a frame cannot be encoded and is left out", extra={"action": "frame_left_out", "frame": kind})
            return []
        message = None
    if message is not None and (len(message) <= MAX_MESSAGE_BYTES or len(frames) == 1):
        return [message]
    half = len(frames) // 2
    return _messages(frames[:half]) + _messages(frames[half:])


async def serve_agent(controller: Controller, receive: Receive, send: SendMessage) -> None:
    """Speak with one agent, whose token has been checked, until it goes."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    outbox = _Outbox(send)
    handle: AgentHandle | None = None
    greeting: bytes | None = None
    put = outbox.put  # one bound method: the session recognises its connection by it
    writer = asyncio.create_task(outbox.write_forever(), name="agent-writer")
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            greeting = await _receive_bytes(receive)
        hello, frames = _read_greeting(greeting)
        handle = controller.sessions.attach(hello, put)  # from here on it must be detached
        controller.sessions.receive(handle, frames)
        while True:
            async with asyncio.timeout(SILENCE_S):
                data = await _receive_bytes(receive)
            if data is None:
                return
            if not handle.is_reached_by(put):
                # Its lease has lapsed meanwhile. It connects again, says what it holds, and learns what of that is void.
                log.warning("agent fenced", extra={"action": "agent_fenced", "agent": handle.agent_id})
                await _close(send, _GOING_AWAY, "the lease has lapsed: connect again")
                return
            controller.sessions.receive(handle, decode_from_agent(data))
    except TimeoutError:
        log.warning("agent silent", extra={"action": "agent_silent"})
        await _close(send, _GOING_AWAY, "silent for too long")
    except (ProtocolError, msgspec.MsgspecError) as exc:
        log.warning("agent refused: %s", exc, extra={"action": "agent_refused"})
        await _close(send, _PROTOCOL_ERROR, str(exc)[:120])
        if handle is None and greeting is not None:
            controller.sessions.refused(greeting)
    finally:
        if handle is not None:
            controller.sessions.detach(handle, put)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


def _read_greeting(message: bytes | None) -> tuple[Hello, list[AgentFrame]]:
    """Return what is in the first message of an agent: its `Hello`, and the frames after it."""
    try:
        frames = decode_from_agent(message) if message is not None else []
    except msgspec.MsgspecError:
        who = introduction(message or b"")
        if who is not None and who.protocol != PROTOCOL_VERSION:
            raise OtherProtocol(who.protocol) from None
        raise
    if not frames:
        raise ProtocolError("the first message must begin with Hello")
    hello, *others = frames
    if not isinstance(hello, Hello):
        raise ProtocolError("the first frame must be Hello")
    return hello, others


async def _receive_bytes(receive: Receive) -> bytes | None:
    """Return the next binary message, or ``None`` when the agent has gone."""
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    data = message.get("bytes")
    if not isinstance(data, bytes):
        raise ProtocolError("agents speak binary messages")
    return data


async def _close(send: SendMessage, code: int, reason: str) -> None:
    try:
        await send({"type": "websocket.close", "code": code, "reason": reason})
    except (RuntimeError, OSError):  # the connection was lost meanwhile: nothing is left to close
        log.debug("agent connection already closed")
