"""What all connections of a server share: limits, the watch, who may come in, and the headers of every answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from dask_fleet.server.admission import Admission
from dask_fleet.server.deadlines import Watch
from dask_fleet.server.lane import Lane

COMMON_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""On every answer, whoever makes it."""
DEFAULT_CACHE_CONTROL = b"cache-control: no-store\r\n"
DEFAULT_POLICY = b"content-security-policy: default-src 'none'; frame-ancestors 'none'\r\n"
"""On every answer that says nothing else of this: data is no page, and must not be able to act as one."""
TRANSPORT_SECURITY = b"strict-transport-security: max-age=31536000\r\n"
"""Under TLS only: a browser that has once come by TLS comes by TLS."""


class Edge:
    """The outermost part of a server, between its sockets and its application."""

    def __init__(self, admission: Admission, watch: Watch | None = None) -> None:
        self.admission = admission
        self.watch = watch or Watch()
        self.lane: Lane | None = None
        """While there is a watch, which brings connections into it."""
        self.requests_refused: Counter[str] = Counter()
        """What was no request or over a limit, and so came to no application, ever, by the code of the problem."""
        self.handshakes_failed = {"timeout": 0, "protocol": 0, "disconnect": 0}
        """TLS handshakes that came to nothing, ever, by the reason."""
        self._made_from: list[tuple[bytes, bytes]] | None = None
        self._plain = self._secure = b""

    def common_head(self, defaults: list[tuple[bytes, bytes]], *, tls: bool) -> bytes:
        """Return the lines that begin every answer's head: uvicorn's (the date, new every second) and ours."""
        if defaults is not self._made_from:
            self._made_from = defaults
            self._plain = b"".join(b"%s: %s\r\n" % header for header in (*defaults, *COMMON_HEADERS))
            self._secure = self._plain + TRANSPORT_SECURITY
        return self._secure if tls else self._plain

    def figures(self) -> dict[str, Any]:
        """Return what an operator sees of the edge. What ends in ``_total`` counts since the server's start."""
        admission = self.admission
        return {
            "connections": admission.total,
            "connections_total": admission.entered,
            "connections_refused_total": dict(admission.refused),
            "connections_timed_out_total": dict(self.watch.expired),
            "requests_refused_total": dict(self.requests_refused),
            "tls_handshakes_failed_total": dict(self.handshakes_failed),
        }

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Hold the deadlines, and give all connections their turn, while the block lasts."""
        self.lane = lane = Lane(asyncio.get_running_loop())
        task = asyncio.create_task(self.watch.run(), name="connection-watch")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.lane = None
            lane.close()
