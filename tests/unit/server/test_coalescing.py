"""Writes of one turn leave together, in order, and nothing is lost at the end."""

from __future__ import annotations

import asyncio
from typing import Any

from dask_fleet.server.coalescing import CoalescingTransport


class Wire:
    """A transport that keeps what it is told."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return name


def on_loop(scene: Any) -> None:
    async def play() -> None:
        wire = Wire()
        transport = CoalescingTransport(wire, asyncio.get_running_loop())  # type: ignore[arg-type]
        await scene(wire, transport)

    asyncio.run(play())


def test_what_is_written_in_one_turn_leaves_together() -> None:
    async def scene(wire: Wire, transport: CoalescingTransport) -> None:
        transport.write(b"head")
        transport.writelines([b"body", b"!"])
        assert wire.sent == []
        await asyncio.sleep(0)
        assert wire.sent == [b"headbody!"]
        transport.write(b"next")
        await asyncio.sleep(0)
        assert wire.sent == [b"headbody!", b"next"]

    on_loop(scene)


def test_closing_sends_what_was_written_first() -> None:
    async def scene(wire: Wire, transport: CoalescingTransport) -> None:
        transport.write(b"last")
        transport.close()
        assert (wire.sent, wire.closed) == ([b"last"], True)
        await asyncio.sleep(0)
        assert wire.sent == [b"last"]

    on_loop(scene)


def test_nothing_is_written_to_a_connection_that_went_meanwhile() -> None:
    async def scene(wire: Wire, transport: CoalescingTransport) -> None:
        transport.write(b"late")
        wire.close()
        await asyncio.sleep(0)
        assert wire.sent == []

    on_loop(scene)


def test_everything_else_is_the_transports_own() -> None:
    async def scene(_wire: Wire, transport: CoalescingTransport) -> None:
        assert transport.get_extra_info("peername") == "peername"

    on_loop(scene)
