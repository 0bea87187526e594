"""How long a connection may take for what it is at, and the one watch that looks after all of them.

No timer per connection or request: twice a second the watch looks at every open connection. A connection only notes what
it is at; since when, the watch notes itself. That costs a request a few attribute writes, and 10,000 open connections
some milliseconds a second.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

TICK_S = 0.5
_SLICE_S = 0.0002
"""For so long the watch looks at connections (and ends those that are late) before it is the turn of others..."""
_REST_S = 0.001
"""...for so long: an answer takes several turns of the event loop, and must not wait for connections that end in each."""
_MOST_TICKS = 4


class Phase(enum.Enum):
    """What a connection is at."""

    HEAD = "head"
    """Waiting for the rest of a request's head, or silent since it was opened."""
    BODY = "body"
    """Waiting for the rest of a request's body."""
    ANSWER = "answer"
    """The request is complete; it is our turn."""
    IDLE = "idle"
    """Between two requests."""
    LEAVING = "leaving"
    """All is said: waiting a moment for the client to hang up, lest what is still on its way undoes our last words."""
    WEBSOCKET = "websocket"
    """No HTTP any more. Silence is judged by whoever speaks on it."""


SLOW = frozenset({Phase.HEAD, Phase.BODY, Phase.IDLE, Phase.LEAVING})
"""Where it is the client's turn."""


class Verdict(enum.Enum):
    """What is to be done with a connection."""

    CLOSE = "close"
    BODY_LATE = "body_late"
    ABORT = "abort"
    """Drop it with what it has not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds for each phase. Each ends at its number, or at most two ticks later, never earlier."""

    head_s: float = 10.0
    """From a request's first byte (the first request: from the connection's beginning) to the end of its head."""
    body_s: float = 30.0
    """From the end of the head to the end of the body. A body that goes by rate is looked at so often."""
    body_bytes_per_s: int = 1_000
    """What a body that goes by rate must bring, on the average of `body_s`."""
    idle_s: float = 5.0
    """Between two requests."""
    stall_s: float = 30.0
    """A client that takes no byte of what waits for it for so long is taken for gone."""
    leaving_s: float = 2.0

    def verdict(self, phase: Phase, *, age_s: float, stalled_s: float) -> Verdict | None:
        """Judge a connection that has been in `phase` for `age_s` and has taken nothing for `stalled_s`."""
        if stalled_s >= self.stall_s:
            return Verdict.ABORT
        if phase is Phase.HEAD:
            return Verdict.CLOSE if age_s >= self.head_s else None
        if phase is Phase.BODY:
            return Verdict.BODY_LATE if age_s >= self.body_s else None
        if phase is Phase.IDLE:
            return Verdict.CLOSE if age_s >= self.idle_s else None
        if phase is Phase.LEAVING:
            return Verdict.ABORT if age_s >= self.leaving_s else None
        return None


class Wire(Protocol):
    """The transport's side of a connection."""

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the client to take them."""


class Watched:
    """What the watch knows of a connection. A connection that changes its phase sets `since` to 0: the watch fills it in."""

    phase: Phase = Phase.HEAD
    since: float = 0.0
    stalled_since: float = 0.0
    waiting_bytes: int = 0
    wire: Wire

    lane_fd: int = -1
    """Its descriptor while it is in the slow lane."""

    def expire(self, verdict: Verdict) -> bool:
        """Do what was judged, and return whether it ends the connection; may be called again at the next tick."""
        raise NotImplementedError

    def slow_down(self) -> None:
        """Go into the slow lane: for a tick or more it was our turn at no time."""


class Watch:
    """Looks at all connections twice a second.

    Its clock runs with the process: after a pause of the whole process (a stopped container, a laptop asleep) nobody's
    time is up for it.
    """

    def __init__(self, deadlines: Deadlines | None = None, *, tick_s: float = TICK_S) -> None:
        self.deadlines = deadlines or Deadlines()
        self._tick_s = tick_s
        self.connections: set[Watched] = set()
        self.expired = {"head": 0, "body": 0, "idle": 0, "stall": 0}
        """Connections ended by a deadline, ever, by the deadline."""

    async def run(self) -> None:
        """Watch until cancelled."""
        now = then = time.monotonic()
        while True:
            await asyncio.sleep(self._tick_s)
            real = time.monotonic()
            now += min(real - then, _MOST_TICKS * self._tick_s)
            then = real
            end = time.perf_counter() + _SLICE_S
            for _ in self._looks(now):
                if time.perf_counter() > end:
                    await asyncio.sleep(_REST_S)  # a thousand that are late at once are ended one after the other
                    end = time.perf_counter() + _SLICE_S

    def _looks(self, now: float) -> Iterator[None]:
        """Judge every connection at the time `now` (seconds of any clock that only goes forward, over 0)."""
        for connection in list(self.connections):
            if connection not in self.connections:
                continue  # gone, while others had their turn
            try:
                self._look_at(connection, now)
            except Exception:  # one odd connection must not end the watch over all others
                log.exception("cannot judge a connection", extra={"action": "watch_failed"})
                self.connections.discard(connection)
            yield

    def _look_at(self, connection: Watched, now: float) -> None:
        waiting = connection.wire.get_write_buffer_size()
        if waiting == 0:
            connection.stalled_since = 0.0
        elif connection.stalled_since == 0.0 or waiting < connection.waiting_bytes:
            connection.stalled_since = now
        connection.waiting_bytes = waiting
        if connection.since == 0.0:
            connection.since = now
        phase = connection.phase
        verdict = self.deadlines.verdict(
            phase,
            age_s=now - connection.since,
            stalled_s=now - connection.stalled_since if connection.stalled_since else 0.0,
        )
        if verdict is not None:
            if connection.expire(verdict) and phase is not Phase.LEAVING:
                self.expired["stall" if verdict is Verdict.ABORT else phase.value] += 1
        elif connection.lane_fd < 0 and now > connection.since and phase in SLOW:
            connection.slow_down()
