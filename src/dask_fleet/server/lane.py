"""The slow lane: where connections are read a little at a time, so that however many they are, others have their turn.

An event loop reads all that has come before it looks again: of a thousand connections that trickle a byte each, or hang up,
or send their first request, all are read before the next request of a client that has done nothing wrong; and of each as
much as is there, up to megabytes. So a connection is in the lane until its first request is complete, for the rest of a
body once reading it had to wait, for its last moments, and whenever it has been silent, or in the midst of a request, for a
tick of the watch. The lane's connections are in an epoll set of their own, of which the event loop sees one descriptor:
when that is readable, some are read, each one piece, for `TURN_S` at most or until the application has something to do, and
then it is the turn of the rest of the server: for `REST_S`, if there was more to read. An answer takes several turns of the
event loop, and must not wait for a piece of the lane in each.

Who is in the middle of things (one request after another, a websocket, an answer under way) is not in the lane and pays
nothing for it. Nor are connections under TLS: their bytes must go through the event loop's own TLS. What bounds those is
what a handshake costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections import deque
from typing import Protocol, cast

from uvicorn.protocols.http.flow_control import FlowControl

from dask_fleet.server import deadlines

TURN_S = 0.0002
"""Of a turn: about what an answer takes that is there already."""
REST_S = 0.001
"""Between two turns that were used up."""
_AT_ONCE = 64


class Wire(deadlines.Wire, Protocol):
    """The transport's side of a connection, as far as reading goes."""

    def pause_reading(self) -> None:
        """Read no more; once more does nothing."""

    def resume_reading(self) -> None:
        """Read again."""


class Guest(Protocol):
    """A connection that may be in the lane."""

    wire: Wire

    lane_fd: int
    """Its descriptor while it is in the lane, else -1."""

    def read_in_lane(self) -> bool:
        """Read one piece and do what it says; return whether there is more to do now, in a later turn, by somebody else."""

    def leave_lane(self) -> None:
        """Leave, if it is in."""

    def read_on(self) -> None:
        """Be read again, in the lane or by the event loop."""


class Lane:
    """Reads those that are in it, in turn.

    A guest that enters must not be read by anybody else: its transport's reading is paused.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._guests: dict[int, Guest] = {}
        self._ready: deque[int] = deque()
        self._rest: asyncio.TimerHandle | None = None
        self._go_on()

    def __len__(self) -> int:
        return len(self._guests)

    def close(self) -> None:
        """Read nobody any more."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for guest in self._guests.values():
            guest.lane_fd = -1
        self._guests.clear()

    def enter(self, guest: Guest, fd: int) -> bool:
        """Take a connection in; return whether it could be."""
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except (OSError, ValueError):  # no memory for one more, or the lane is closed: it is read as any other
            return False
        self._guests[fd] = guest
        guest.lane_fd = fd
        return True

    def leave(self, guest: Guest) -> None:
        """Let a connection go; once more does nothing."""
        fd, guest.lane_fd = guest.lane_fd, -1
        if fd >= 0 and self._guests.get(fd) is guest:  # else it is closed, and its number another's already
            del self._guests[fd]
            self._forget(fd)

    def _turn(self) -> None:
        ready = self._ready
        if not ready:  # whoever was not read in the last turn comes first
            ready.extend([fd for fd, _ in self._epoll.poll(0, _AT_ONCE)])
        end = time.perf_counter() + TURN_S
        while ready:
            fd = ready.popleft()
            guest = self._guests.get(fd)
            if guest is None:
                self._forget(fd)
            elif guest.read_in_lane():
                return
            elif time.perf_counter() > end:
                self._loop.remove_reader(self._epoll.fileno())
                self._rest = self._loop.call_later(REST_S, self._go_on)
                return

    def _go_on(self) -> None:
        self._rest = None
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def _forget(self, fd: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed: the kernel has forgotten it
            self._epoll.unregister(fd)


def read_piece(fd: int, size: int) -> bytes | None:
    """Read what is there; ``None`` if there is nothing, and ``b""`` if there will never be any more."""
    try:
        return os.read(fd, size)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""


class LaneFlow(FlowControl):
    """uvicorn's flow control of a connection that may be in the lane."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(cast("asyncio.Transport", guest.wire))
        self._guest: Guest | None = guest

    def pause_reading(self) -> None:
        """Read no more of it, wherever it is."""
        if not self.read_paused and self._guest is not None:
            self.read_paused = True
            self._guest.leave_lane()
            self._guest.wire.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self.read_paused and self._guest is not None:
            self.read_paused = False
            self._guest.read_on()

    def end(self) -> None:
        """The connection is gone: do not keep it, lest both wait for the garbage collector."""
        self._guest = None
