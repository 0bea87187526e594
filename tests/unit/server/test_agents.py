"""The websocket of agents: whoever was let in is let out, whatever it says."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.unit.controller.rig import Rig, run

from dask_fleet.protocol.frames import (
    PROTOCOL_VERSION,
    Hello,
    Introduction,
    Ready,
    decode_from_agent,
    encode_batch,
    introduction,
)
from dask_fleet.server.agents import _Outbox, serve_agent

HELLO = Hello(PROTOCOL_VERSION, "local-a", "local", 1, 1, "", [])


@pytest.mark.parametrize("first", [[], [Ready({}, {}, 1)], [HELLO, HELLO]])
def test_an_agent_that_begins_wrongly_is_sent_away_and_holds_nothing(first: list[Any]) -> None:
    @run
    async def refused() -> None:
        received = [{"type": "websocket.connect"}, {"type": "websocket.receive", "bytes": encode_batch(first)}]
        sent: list[Any] = []

        async def receive() -> Any:
            return received.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        async with Rig() as rig:
            await serve_agent(rig.controller, receive, send)
            assert not any(handle.connected for handle in rig.controller.agents)
        assert (sent[-1]["type"], sent[-1]["code"]) == ("websocket.close", 1002)

    refused()


@pytest.mark.parametrize("rest", [[], [1, "", [], "3.11", {}, 5]])  # the second cannot be read by this version
def test_an_agent_of_another_protocol_is_told_so_and_told_of(rest: list[Any]) -> None:
    @run
    async def refused() -> None:
        hello = ["Hello", PROTOCOL_VERSION + 1, "local-old", "local", 77, *rest]
        received = [{"type": "websocket.connect"}, {"type": "websocket.receive", "bytes": msgspec.msgpack.encode([hello])}]
        sent: list[Any] = []
        told: list[Any] = []

        async def receive() -> Any:
            return received.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        async with Rig() as rig:
            rig.controller.sessions.on_refused = told.append
            await serve_agent(rig.controller, receive, send)
        assert sent[-1]["reason"].startswith(f"the agent speaks protocol {PROTOCOL_VERSION + 1}, this server")
        assert told == [Introduction(PROTOCOL_VERSION + 1, "local-old", "local", 77)]

    refused()


@pytest.mark.parametrize("message", [b"", b"\x90", b"\x91\x90", b"\xc1", msgspec.msgpack.encode([["Hello", "1", 2, 3, 4]])])
def test_what_is_no_hello_introduces_nobody(message: bytes) -> None:
    assert introduction(message) is None


def test_a_frame_that_cannot_be_encoded_costs_no_other_its_way(caplog: pytest.LogCaptureFixture) -> None:
    """It did once: a cluster's configuration with a number of 400 digits, and the agent heard of nothing any more."""
    sent: list[bytes] = []
    frames = [Ready({f"service{number}": "v"}, {}, 1) for number in range(5)]
    frames[2] = Ready({}, {}, 10**400)

    async def send(message: Any) -> None:
        sent.append(message["bytes"])
        if sum(len(decode_from_agent(data)) for data in sent) == 4:
            all_there.set()

    all_there = asyncio.Event()

    async def main() -> None:
        outbox = _Outbox(send)
        writer = asyncio.create_task(outbox.write_forever())
        for frame in frames:
            outbox.put(frame)  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            await all_there.wait()
        assert not writer.done()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    asyncio.run(main())
    assert [frame for data in sent for frame in decode_from_agent(data)] == [*frames[:2], *frames[3:]]
    assert [record.action for record in caplog.records] == ["frame_left_out"]  # type: ignore[attr-defined]
