"""The way home: finds the server, stays connected, comes back after it was away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from enum import Enum

from dask_fleet.agent.address import read_address
from dask_fleet.agent.connection import Connection, Refused
from dask_fleet.agent.options import AgentOptions
from dask_fleet.config.trust import CURE, explain
from dask_fleet.model.errors import SetupError
from dask_fleet.protocol.frames import HEARTBEAT_S, AgentFrame, Hello, ServerFrame, Welcome

log = logging.getLogger(__name__)

AGENTS_PATH = "/v1/agents"
_CONNECT_TIMEOUT_S = 10.0
_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 2.0
_LOOK_S = 0.05
"""How often a changed server file is looked for while waiting: a server that is just starting is found at once."""
_SILENCE_S = 3 * HEARTBEAT_S
"""A server that sends nothing for so long, pings unanswered, is as good as away: so long as it believes in us unheard."""


class Ending(Enum):
    """Why the link has given up."""

    ORPHANED = "orphaned"
    REFUSED = "refused"
    CLOSED = "closed"


class Link:
    """Keeps one connection to the server.

    Parameters
    ----------
    hello
        Makes the first frame of each connection.
    on_welcome, on_frames, on_lost
        Called on the event loop: when the server has answered, for frames after that, and when the connection is gone.
    heartbeat
        Makes the frames that go out every `HEARTBEAT_S`.
    """

    def __init__(
        self,
        options: AgentOptions,
        *,
        hello: Callable[[], Hello],
        on_welcome: Callable[[Welcome], None],
        on_frames: Callable[[list[ServerFrame]], None],
        on_lost: Callable[[], None],
        heartbeat: Callable[[], list[AgentFrame]],
    ) -> None:
        self._options = options
        self._hello = hello
        self._on_welcome = on_welcome
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._heartbeat = heartbeat
        self._connection: Connection | None = None
        self._local_host = ""
        self._welcomed = False
        self._was_welcomed = False
        self._closed = False
        self._distrusted = ""
        self._absence = ""

    @property
    def connected(self) -> bool:
        """Whether the server has welcomed us on the present connection."""
        return self._welcomed

    @property
    def local_host(self) -> str:
        """The address of this host that faces the server; empty before the first welcome."""
        return self._local_host

    @property
    def was_welcomed(self) -> bool:
        """Whether any server ever welcomed us."""
        return self._was_welcomed

    def send(self, frame: AgentFrame) -> None:
        """Send a frame if connected, else drop it: what must not be lost waits in the outbox."""
        if self._welcomed and self._connection is not None:
            self._connection.send(frame)

    async def run(self) -> Ending:
        """Stay connected until we close, the server refuses us, or it has been away for ``orphan_timeout_s``."""
        loop = asyncio.get_running_loop()
        last_seen = loop.time()
        backoff = _FIRST_BACKOFF_S
        while True:
            stamp = self._stamp()
            try:
                connection = await self._connect()
            except Refused as exc:
                if exc.is_final:
                    log.warning(
                        "the server refuses this agent's token (%d): put a token with the scope 'agent' into %s and "
                        "start the agent again",
                        exc.status,
                        self._options.token_file,
                        extra={"action": "refused"},
                    )
                    return Ending.REFUSED
                log.info("no server yet: %s", exc)
            except (OSError, ValueError, TimeoutError, SetupError) as exc:
                why_not = explain(exc) or (exc.detail if isinstance(exc, SetupError) else None)
                if why_not is None:
                    self._tell_absence(exc)
                elif why_not != self._distrusted:  # said once, not at each try
                    self._distrusted = why_not
                    log.warning(
                        "refused to speak with the server: %s. %s", why_not, CURE, extra={"action": "server_untrusted"}
                    )
                if why_not is not None and self._options.server is not None and not self._was_welcomed:
                    return Ending.REFUSED  # it never was right: nothing that waiting mends
            else:
                why = await self._stay(connection)
                log.warning("connection lost: %s", why, extra={"action": "disconnected", "why": why})
                if not self._welcomed and connection.refusal is not None:
                    # As after an upgrade of the server: one of its own version has to take this one's place.
                    log.error("the server refuses this agent: %s", connection.refusal, extra={"action": "refused"})
                    return Ending.REFUSED
                if self._welcomed:
                    self._welcomed = False
                    last_seen, backoff = loop.time(), _FIRST_BACKOFF_S
                    self._on_lost()
            if self._closed:
                return Ending.CLOSED
            if loop.time() - last_seen >= self._options.orphan_timeout_s:
                log.warning("no server for %g s: ending", self._options.orphan_timeout_s, extra={"action": "orphaned"})
                return Ending.ORPHANED
            await self._pause(backoff * random.uniform(0.5, 1.0), stamp)
            backoff = min(_MAX_BACKOFF_S, backoff * 1.6)

    def close(self, reason: str) -> None:
        """Close the connection there is, for good; what was sent in this turn still leaves."""
        self._closed = True
        if self._connection is not None:
            self._connection.close(reason)

    async def _connect(self) -> Connection:
        """Open a websocket; raises `Refused`, OSError, TimeoutError, ValueError or SetupError (unusable files)."""
        loop = asyncio.get_running_loop()
        address = read_address(self._options)  # small local files, read once a connect: not worth a thread
        context = await asyncio.to_thread(address.context) if address.secure else None
        uri = f"{address.url.replace('http', 'ws', 1)}{AGENTS_PATH}"
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(uri, address.token, self._receive), address.host, address.port, ssl=context
            )
            try:
                await connection.open
            except BaseException:
                connection.abort("not opened")
                raise
        return connection

    async def _stay(self, connection: Connection) -> str:
        """Say hello and beat until the connection is gone; returns why it went."""
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._local_host = connection.local_host or self._local_host
        try:
            connection.send(self._hello())
            beats = 0
            while not connection.closed.done():
                await asyncio.wait([connection.closed], timeout=HEARTBEAT_S)
                beats += 1
                if not self._welcomed and beats * HEARTBEAT_S > _CONNECT_TIMEOUT_S:
                    connection.abort("the server did not answer the hello")
                elif loop.time() - connection.heard_at > _SILENCE_S:
                    connection.abort("the server has gone silent")
                elif self._welcomed:
                    for frame in self._heartbeat():
                        connection.send(frame)
                    connection.ping()
            return connection.closed.result()
        finally:
            self._connection = None
            connection.abort("left")

    def _tell_absence(self, exc: Exception) -> None:
        """Say why nobody answers: once for each reason, to whoever typed the address; a server of ours is about to come."""
        why = str(exc) or type(exc).__name__
        if self._options.server is None or why == self._absence:
            log.debug("no server yet: %s", why)
            return
        self._absence = why
        log.info(
            "no server at %s yet: %s; trying for %g s", self._options.server, why, self._options.orphan_timeout_s,
            extra={"action": "no_server"},
        )  # fmt: skip

    def _receive(self, frames: list[ServerFrame]) -> None:
        if not self._welcomed and frames and isinstance(frames[0], Welcome):
            self._welcomed = self._was_welcomed = True
            self._distrusted = self._absence = ""
            self._on_welcome(frames[0])
            frames = frames[1:]
        if self._welcomed:
            self._on_frames(frames)

    def _stamp(self) -> tuple[int, int]:
        """What tells that the server file was written anew."""
        if self._options.server_file is None:
            return (0, 0)
        try:
            found = self._options.server_file.stat()
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_ino)

    async def _pause(self, delay_s: float, stamp: tuple[int, int]) -> None:
        """Wait, but no longer than until the server file is written anew."""
        loop = asyncio.get_running_loop()
        until = loop.time() + delay_s
        while (rest := until - loop.time()) > 0:
            await asyncio.sleep(min(_LOOK_S, rest))
            if self._stamp() != stamp:
                return
