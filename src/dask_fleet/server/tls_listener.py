"""Accepts connections that are to speak TLS, and counts them from the moment they are accepted.

The event loop's own server would tell of a connection only when its handshake is over: until then it would stand in no
limit, and whoever begins handshakes without ending them could take every descriptor of the process.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from dask_fleet.server.edge import Edge
from dask_fleet.server.http_protocol import FleetHTTPProtocol
from dask_fleet.server.listener import Listener

HANDSHAKE_S = 10.0
"""For a TLS handshake, and for its end."""

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


class TLSListener(Listener):
    """A `Listener` whose connections begin with a handshake, for which they have `within_s` seconds."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: MakeProtocol,
        edge: Edge,
        *,
        within_s: float = HANDSHAKE_S,
    ) -> None:
        self._context = context
        self._make_secured = make
        self._edge = edge
        self._within_s = within_s
        super().__init__(listener, asyncio.Protocol)  # `begin` makes its own

    def begin(self, sock: socket.socket, peer: str) -> None:
        """Begin a handshake."""
        handshake = Handshake(self._edge, peer)
        work = handshake.shake(sock, self._make_secured, self._context, self._within_s)
        handshake.task = self.spawn(work, sock, name="tls-handshake", after=handshake.leave)


def _reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return "protocol"
    return "timeout" if isinstance(exc, (ConnectionAbortedError, TimeoutError)) else "disconnect"
