"""One websocket: uvicorn's protocol, counted and watched like every other connection."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from dask_fleet.server.coalescing import drop
from dask_fleet.server.deadlines import Phase, Verdict, Watched, Wire
from dask_fleet.server.edge import COMMON_HEADERS, Edge


class FleetWebSocketProtocol(WebSocketsSansIOProtocol, Watched):
    """A connection after its upgrade. Its silence is judged by the agents' session, its stalled writes by the watch."""

    _edge: Edge | None = None
    _peer = ""

    def taken_over(self, edge: Edge, peer: str, wire: Wire) -> None:
        """Go on in the place of the HTTP connection that it was."""
        self._edge, self._peer, self.wire = edge, peer, wire
        self.phase = Phase.WEBSOCKET
        self.default_headers = [*self.default_headers, *COMMON_HEADERS]
        edge.watch.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._edge is not None:
            self._edge.watch.connections.discard(self)
            self._edge.admission.leave(None, self._peer)
        super().connection_lost(exc)

    def expire(self, verdict: Verdict) -> bool:  # noqa: ARG002 - there is but one end
        """Drop a peer that takes nothing any more; it dials again if it lives."""
        drop(self.transport)
        return True
