"""Accepts connections that are to speak TLS, and counts them from the moment they are accepted.

The event loop's own server would tell of a connection only when its handshake is over: until then it would stand in no
limit, and whoever begins handshakes without ending them could take every descriptor of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from dask_fleet.server.edge import Edge
from dask_fleet.server.http_protocol import FleetHTTPProtocol

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""For a TLS handshake, and for its end."""
_ACCEPTED_AT_ONCE = 2
"""Then it is the turn of whoever else waits for the event loop."""
_PAUSE_S = 0.5
"""Without descriptors or memory, accepting again at once would fail again at once."""

MakeProtocol = Callable[["Handshake"], FleetHTTPProtocol]


class SecuredHTTPProtocol(FleetHTTPProtocol):
    """An HTTP connection behind a handshake, whose place it takes."""

    def __init__(self, *args: Any, handshake: Handshake, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handshake = handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, in the handshake's place."""
        self._handshake.leave(returns=True)
        super().connection_made(transport)


class Handshake:
    """A connection until TLS stands. It has its place among the connections; beyond the limits, a reserved one."""

    def __init__(self, edge: Edge, peer: str) -> None:
        self._edge = edge
        self._peer = peer
        self._inside = True
        self._turned_away = False
        self.task: asyncio.Task[None] | None = None
        edge.admission.enter(self, peer)

    def leave(self, *, returns: bool = False) -> None:
        """Give the place back, once; `returns` if what comes of it takes it at once."""
        if self._inside:
            self._inside = False
            self._edge.admission.leave(self, self._peer, returns=returns)

    def turn_away(self) -> None:
        """Make room: another connection needs this one's reserved place."""
        self._turned_away = True
        if self.task is not None:
            self.task.cancel()

    async def shake(self, sock: socket.socket, make: MakeProtocol, context: ssl.SSLContext, within_s: float) -> None:
        """Come to speak TLS, or to nothing."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: make(self), sock, ssl=context, ssl_handshake_timeout=within_s, ssl_shutdown_timeout=within_s
            )
        except OSError as exc:  # an SSLError is one, too
            self._edge.handshakes_failed[_reason(exc)] += 1
        except asyncio.CancelledError:
            if not self._turned_away:
                raise


class TLSListener:
    """In the place of an `asyncio.Server`.

    Parameters
    ----------
    listener
        Bound and listening, not blocking. It stays its owner's.
    make
        Makes the protocol of a connection.
    within_s
        Seconds for a handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: MakeProtocol,
        edge: Edge,
        *,
        within_s: float = HANDSHAKE_S,
    ) -> None:
        self._listener = listener
        self._context = context
        self._make = make
        self._edge = edge
        self._within_s = within_s
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self.sockets = (listener,)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more, and end the handshakes under way; connections go on."""
        if self._pause is not None:
            self._pause.cancel()
        with contextlib.suppress(ValueError, OSError):  # its owner may have closed it
            self._loop.remove_reader(self._listener)
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for the last handshake's end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                log.error(  # noqa: TRY400 - the message says it all
                    "cannot accept connections: %s", exc.strerror, extra={"action": "accept_failed"}
                )
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._listener, self._accept)
                return
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._begin(sock, str(address[0]))

    def _begin(self, sock: socket.socket, peer: str) -> None:
        handshake = Handshake(self._edge, peer)
        task = self._loop.create_task(handshake.shake(sock, self._make, self._context, self._within_s), name="tls-handshake")
        handshake.task = task
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            handshake.leave()
            if task.cancelled():
                sock.close()  # it may not even have begun
            elif (exc := task.exception()) is not None:
                sock.close()
                log.error("a handshake failed", exc_info=exc, extra={"action": "handshake_failed"})

        task.add_done_callback(ended)


def _reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return "protocol"
    return "timeout" if isinstance(exc, (ConnectionAbortedError, TimeoutError)) else "disconnect"
