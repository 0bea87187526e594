"""What the agent sends, message by message."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from websockets.protocol import State

from dask_fleet.agent.connection import Connection
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import MAX_MESSAGE_BYTES, SPOOL_ABOVE_BYTES, Outcome, decode_from_agent


def test_what_gathers_while_the_server_reads_slowly_leaves_in_messages_it_takes() -> None:
    body = b"x" * SPOOL_ABOVE_BYTES
    count = 2 * MAX_MESSAGE_BYTES // SPOOL_ABOVE_BYTES
    messages: list[bytes] = []

    async def scene() -> None:
        connection = Connection("ws://127.0.0.1:1/", "token", lambda _: None)
        connection._websocket = SimpleNamespace(  # type: ignore[assignment]
            state=State.OPEN, send_binary=messages.append, data_to_send=list
        )
        connection.pause_writing()
        for seq in range(count):
            connection.send(Outcome(seq, 1, 1, AttemptState.SUCCEEDED, "w", 1, size=len(body), body=body))
        await asyncio.sleep(0)
        assert not messages
        connection.resume_writing()

    asyncio.run(scene())
    assert max(map(len, messages)) <= MAX_MESSAGE_BYTES
    assert [frame.seq for message in messages for frame in decode_from_agent(message)] == list(range(count))
