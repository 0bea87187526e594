"""The websocket of agents: whoever was let in is let out, whatever it says."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.controller.rig import Rig, run

from dask_fleet.protocol.frames import PROTOCOL_VERSION, Hello, Ready, encode_batch
from dask_fleet.server.agents import serve_agent

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
