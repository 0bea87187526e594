"""The slow lane: who is in it, that nobody starves there, and that turns of the event loop stay short whatever has come."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
import weakref
from collections import Counter
from collections.abc import Iterator

import pytest
import uvloop
from tests.unit.server.edge_rig import EdgeRig, heard, status_of
from tests.unit.server.test_http_protocol import UPGRADE, get, post

from dask_fleet.server import lane as lane_module
from dask_fleet.server.deadlines import Deadlines
from dask_fleet.server.lane import Lane, read_piece

PATIENT = Deadlines(head_s=30.0, body_s=30.0, idle_s=30.0)


@pytest.fixture
def rig() -> Iterator[EdgeRig]:
    with EdgeRig(PATIENT) as rig:
        yield rig


def in_lane(rig: EdgeRig) -> int:
    return 0 if rig.edge.lane is None else len(rig.edge.lane)


# ---------------------------------------------------------------------- who is in it


def test_a_connection_is_in_the_lane_until_its_request_is_complete(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        rig.until(lambda: in_lane(rig) == 1, "the silent one to be in the lane")
        request = get("/wait")
        for at in range(len(request)):
            sock.sendall(request[at : at + 1])
        rig.until(lambda: len(rig.application.scopes) == 1, "its request to be served")
        assert in_lane(rig) == 0
    rig.until(lambda: rig.application.log == ["left"], "its leaving to be noticed")


def test_an_idle_connection_goes_back_and_is_served_again(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        for _ in range(3):
            sock.sendall(get("/again"))
            assert sock.recv(1_000).endswith(b"/again")
            rig.until(lambda: in_lane(rig) == 1, "the idle one to be in the lane")
    rig.until(lambda: in_lane(rig) == 0 and rig.edge.admission.total == 0, "its end to be seen in the lane")


def test_a_websocket_is_not_in_the_lane(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        rig.until(lambda: in_lane(rig) == 1, "the silent one to be in the lane")
        sock.sendall(get("/v1/agents", *UPGRADE))
        assert sock.recv(1_000).startswith(b"HTTP/1.1 101")
        assert in_lane(rig) == 0
        sock.sendall(b"\x88\x80\0\0\0\0")  # its closing is heard
        rig.until(lambda: rig.application.log == ["websocket ended"], "the websocket's end")


@pytest.mark.parametrize("size", [1, 100_000, 1_000_000])
def test_a_body_comes_whole_through_the_lane(rig: EdgeRig, size: int) -> None:
    body = bytes(size)
    with rig.dial() as sock:
        sock.sendall(post("/body", size))
        rig.until(lambda: in_lane(rig) == 1, "the one without its body to be in the lane")
        sock.sendall(body)
        assert sock.recv(1_000).endswith(b"\r\n\r\n%d" % size)
        sock.sendall(get("/next", "Connection: close"))
        assert heard(sock).endswith(b"/next")


def test_what_has_no_place_in_the_lane_is_served_without(rig: EdgeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "enter", lambda *_: False)
    assert rig.ask(get("/a"), get("/b", "Connection: close")).endswith(b"/b")
    body = bytes(500_000)
    with rig.dial() as sock:
        sock.sendall(post("/body", len(body), body))
        assert sock.recv(1_000).endswith(b"\r\n\r\n500000")


# ---------------------------------------------------------------------- turns


class Guest:
    """Reads a byte at a time, and counts."""

    wire = None

    def __init__(self, number: int, reads: Counter[int], *, more: bool) -> None:
        self.lane_fd = -1
        self.mine, self.theirs = socket.socketpair()
        self.mine.setblocking(False)
        self._number, self._reads, self._more = number, reads, more

    def read_in_lane(self) -> bool:
        assert read_piece(self.lane_fd, 1) == b"x"
        self._reads[self._number] += 1
        return self._more

    def close(self) -> None:
        self.mine.close()
        self.theirs.close()


@pytest.mark.parametrize("more", [False, True])
def test_all_have_their_turn_and_others_between(monkeypatch: pytest.MonkeyPatch, *, more: bool) -> None:
    """A hundred who always have something to read: a turn reads as many as time allows, or one that makes more work."""
    monkeypatch.setattr(lane_module, "TURN_S", -1.0)  # each turn's time is over with its first
    reads: Counter[int] = Counter()
    most = 0

    async def main() -> None:
        nonlocal most
        loop = asyncio.get_running_loop()
        lane = Lane(loop)
        guests = [Guest(number, reads, more=more) for number in range(100)]
        for guest in guests:
            guest.theirs.sendall(b"x" * 10)
            assert lane.enter(guest, guest.mine.fileno())  # type: ignore[arg-type]
        before = 0
        while reads.total() < 500:
            await asyncio.sleep(0)
            most = max(most, reads.total() - before)
            before = reads.total()
        assert len(lane) == 100
        lane.close()
        for guest in guests:
            guest.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert most <= 2, "others waited for more than one of them"
    assert set(reads.values()) == {5}, reads


def test_the_lane_rests_when_its_time_was_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an answer, which takes several turns of the event loop, would wait for a piece of the lane in each."""
    rest_s, pieces = 0.02, 10
    monkeypatch.setattr(lane_module, "TURN_S", -1.0)
    monkeypatch.setattr(lane_module, "REST_S", rest_s)
    reads: Counter[int] = Counter()

    async def main() -> float:
        lane = Lane(asyncio.get_running_loop())
        guest = Guest(0, reads, more=False)
        guest.theirs.sendall(b"x" * pieces)
        began = time.monotonic()
        assert lane.enter(guest, guest.mine.fileno())  # type: ignore[arg-type]
        while reads.total() < pieces:  # noqa: ASYNC110 - a turn of the event loop after the other is what is tested
            await asyncio.sleep(0)
        took_s = time.monotonic() - began
        lane.close()
        guest.close()
        return took_s

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) > (pieces - 1) * (rest_s - 0.002)  # uvloop counts in whole milliseconds


def test_who_leaves_is_not_read_and_its_number_may_be_anothers() -> None:
    async def main() -> None:
        reads: Counter[int] = Counter()
        lane = Lane(asyncio.get_running_loop())
        old, new = Guest(1, reads, more=False), Guest(2, reads, more=False)
        fd = old.mine.fileno()
        assert lane.enter(old, fd)  # type: ignore[arg-type]
        os.dup2(new.mine.fileno(), fd)  # the kernel closes the old one, and the new one has its number
        assert lane.enter(new, fd)  # type: ignore[arg-type]
        lane.leave(old)  # type: ignore[arg-type]
        assert len(lane) == 1
        new.theirs.sendall(b"x")
        async with asyncio.timeout(20):
            while not reads:  # noqa: ASYNC110 - a turn of the event loop after the other is what is tested
                await asyncio.sleep(0)
        lane.leave(new)  # type: ignore[arg-type]
        lane.leave(new)  # type: ignore[arg-type]
        new.theirs.sendall(b"x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reads == {2: 1}
        lane.close()
        assert not lane.enter(new, fd), "a closed lane takes nobody"  # type: ignore[arg-type]
        old.close()
        new.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_few_connections_are_accepted_in_a_turn() -> None:
    """Of fifty that wait, each turn of the event loop makes one: the server relies on uvloop for that."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        made = before = most = 0
        transports: list[asyncio.BaseTransport] = []

        class Counting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                nonlocal made
                made += 1
                transports.append(transport)

        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
            bound.setblocking(False)
            for _ in range(50):
                stack.enter_context(socket.create_connection(bound.getsockname()))
            server = await loop.create_server(Counting, sock=bound, backlog=100)
            async with asyncio.timeout(20):
                while made < 50:
                    await asyncio.sleep(0)
                    most = max(most, made - before)
                    before = made
            server.close()
            for transport in transports:
                transport.abort()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        assert loop.is_running()
        return most

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        most = runner.run(main())
    assert 1 <= most <= 2


def test_hundreds_that_hang_up_are_all_let_go(rig: EdgeRig) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(rig.dial())
        rig.until(lambda: in_lane(rig) == 300, "all to be in the lane")
        assert status_of(rig.ask(get("/", "Connection: close"))) == 200
    rig.until(lambda: in_lane(rig) == 0 and rig.edge.admission.total == 0, "all to be gone")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        get("/a"),
        get("/a") + get("/b"),
        post("/body", 9, b"x"),
        post("/body", 100_000, bytes(70_000)),
        b"no HTTP\r\n\r\n",
    ],
)
def test_what_is_gone_leaves_no_garbage(rig: EdgeRig, sent: bytes) -> None:
    """Thousands of connections that hang up would be collected together, and nothing runs for a fifth of a second."""
    gc.collect()
    gc.disable()
    try:
        with rig.dial() as sock:
            rig.until(lambda: in_lane(rig) == 1, "it to be in the lane")
            (gone,) = [weakref.ref(connection) for connection in rig.edge.watch.connections]
            sock.sendall(sent)
            if sent:
                rig.until(lambda: gone() is None or gone().since == 0.0 or rig.application.scopes, "it to be heard")
        rig.until(lambda: rig.edge.admission.total == 0, "it to be gone")
        rig.application.scopes.clear()
        rig.until(lambda: gone() is None, "nothing to hold it")
    finally:
        gc.enable()
