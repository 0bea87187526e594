"""One HTTP connection: uvicorn's protocol on httptools, with limits and deadlines.

uvicorn itself sets none before a request is complete: a head or body that trickles, or a connection that says nothing,
stays for ever; heads, trailers and pipelined requests are kept in memory whatever their size.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dask_fleet.model.errors import BadRequest, FleetError, HeadersTooLarge, RequestTimeout, TooManyConnections
from dask_fleet.server.agents import AGENTS_PATH
from dask_fleet.server.body import BY_RATE
from dask_fleet.server.coalescing import CoalescingTransport, drop
from dask_fleet.server.deadlines import SLOW, Phase, Verdict, Watched
from dask_fleet.server.edge import DEFAULT_POLICY, Edge
from dask_fleet.server.http_exchange import Exchange
from dask_fleet.server.lane import LaneFlow, Wire, read_piece
from dask_fleet.server.problems import problem_bytes, problem_headers
from dask_fleet.server.websocket_protocol import FleetWebSocketProtocol

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 << 10
"""Request line and headers."""
MAX_HEADERS = 100
MAX_PIPELINED = 32
"""Requests that may wait on a connection for the answers before theirs; what comes after them is not read."""
MAX_FRAMING_BYTES = 64 << 10
"""Bytes of a body's framing (chunk extensions, trailers) without a byte of body between."""
READ_AHEAD_BYTES = 64 << 10
"""Of a body that nobody reads; then the connection is not read either."""
WRITE_AHEAD_BYTES = 32 << 10
"""Of an answer that the client does not take; then the next piece is not made."""
_STEP_BYTES = 16 << 10
"""What the parser is fed at once, so that every limit is looked at that often."""
_HEAD_PIECE_BYTES = 4 << 10
"""What the slow lane reads of a head at once: most are shorter, and what is pipelined behind is parsed another time."""
_BODY_PIECE_BYTES = 32 << 10
_COMPLETE = frozenset({Phase.ANSWER, Phase.IDLE})


class FleetHTTPProtocol(HttpToolsProtocol, Watched):
    """One HTTP connection (or, after its upgrade, one websocket)."""

    def __init__(self, *args: Any, edge: Edge, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.edge = edge
        self.peer = ""
        self._on_probation = False
        self._deaf = False
        self._refusal: FleetError | None = None
        self._head_bytes = 0
        self._framing_bytes = 0
        self._window_bytes = 0
        self._discarded_bytes = 0
        self._upgrading = False
        self._running: Exchange | None = None
        self.lane_fd = -1

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(CoalescingTransport(transport, self.loop))  # type: ignore[arg-type]
        transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        self.wire: Wire = transport
        self.flow = LaneFlow(self)
        self.peer = self.client[0] if self.client else ""
        self.edge.watch.connections.add(self)
        self._on_probation = not self.edge.admission.enter(self, self.peer)
        self.loop.call_soon(self._begin_slowly)  # not now: the transport begins to read right after this

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.leave_lane()
        self.edge.watch.connections.discard(self)
        self.edge.admission.leave(self, self.peer)
        running = self._running
        if running is not None and not running.response_complete:  # uvicorn tells only the request that came last
            running.disconnected = True
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        cast("LaneFlow", self.flow).end()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, in steps."""
        if self._deaf:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > READ_AHEAD_BYTES:
                self.flow.pause_reading()
            return
        if len(data) <= _STEP_BYTES:
            self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _STEP_BYTES):
            if not self._feed(view[start : start + _STEP_BYTES]):
                return

    def _begin_slowly(self) -> None:
        if self.phase is not Phase.IDLE:  # else the first request came at once and is answered
            self.slow_down()

    def slow_down(self) -> None:
        """Be read in the slow lane from now on, if that is for such as this."""
        if self.lane_fd < 0 and self.phase in SLOW and not self.flow.read_paused and not self.transport.is_closing():
            self._enter_lane()

    def read_in_lane(self) -> bool:
        """Read a piece; return whether the application has something to do by it, which it does in a later turn."""
        if self.transport.is_closing():
            self.leave_lane()  # its descriptor may be another's by now
            return False
        data = read_piece(self.lane_fd, _HEAD_PIECE_BYTES if self.phase is Phase.HEAD else _BODY_PIECE_BYTES)
        if data is None:
            return False
        if not data:
            self.leave_lane()
            self.transport.close()  # as the event loop does with who has hung up
            return False
        running = self._running
        self.data_received(data)
        if self.lane_fd >= 0 and self.phase in _COMPLETE:
            self.leave_lane()
            self.wire.resume_reading()
        return self._running is not running or (self.phase is Phase.BODY and not self._deaf)

    def read_on(self) -> None:
        """Be read again after a pause: in the slow lane, if it is the client's turn."""
        if self.phase not in SLOW or not self._enter_lane():
            self.wire.resume_reading()

    def leave_lane(self) -> None:
        """Be read by nobody."""
        if self.lane_fd >= 0 and self.edge.lane is not None:
            self.edge.lane.leave(self)

    def _enter_lane(self) -> bool:
        lane = self.edge.lane
        if lane is None or self.scheme == "https" or not lane.enter(self, self.transport.get_extra_info("socket").fileno()):
            return False
        self.wire.pause_reading()
        return True

    def _feed(self, data: bytes | memoryview) -> bool:
        """Parse a step; return whether to go on."""
        phase = self.phase
        if phase is Phase.BODY:
            self._framing_bytes += len(data)  # `on_body` takes it back
            self._window_bytes += len(data)
        elif phase is Phase.HEAD:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgraded()
            return False
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadRequest("this is not a request of HTTP/1.1"))
            return False
        if self.phase is Phase.HEAD:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
        elif self._framing_bytes > MAX_FRAMING_BYTES and self.phase is Phase.BODY:
            self._refuse(BadRequest("the body has more framing than content"))
        return not self._deaf

    def _upgraded(self) -> None:
        if self._upgrading:
            self.handle_websocket_upgrade()
            self._deaf = True
        else:
            self._last_request()  # it is served as if it had not asked; what follows it is no HTTP of ours

    def shutdown(self) -> None:
        """Begin no further request."""
        if self.phase is Phase.LEAVING:
            self.transport.abort()
        else:
            super().shutdown()

    # ------------------------------------------------------------------ the parser's events

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.phase = Phase.HEAD
        self.since = 0.0
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Judge a head, and have the request answered: in its turn, if others came before it."""
        version = self.parser.get_http_version()
        scope: Any = self.scope
        headers = self.headers
        if len(headers) > MAX_HEADERS or (self._head_bytes and self._head_size() > MAX_HEAD_BYTES):
            raise self._refused(_head_too_large())
        if version != "1.1":
            if version != "1.0":
                raise self._refused(BadRequest("this server speaks HTTP/1.1"))
            scope["http_version"] = version
        raw_path, _, query = self.url.partition(b"?")
        if not raw_path.startswith(b"/") or not self.url.isascii() or b"#" in self.url:
            raise self._refused(BadRequest("the target of a request must be a path of this server"))
        path = raw_path.decode("ascii")
        self._upgrading = self.parser.should_upgrade() and self._get_upgrade() == b"websocket"
        if self._on_probation:
            if not self.edge.admission.promote(self, self.peer, agent=self._upgrading and path == AGENTS_PATH):
                raise self._refused(TooManyConnections(retry_after_s=5))
            self._on_probation = False
        scope["method"] = self.parser.get_method().decode("ascii")
        before = self._unanswered()
        if self._upgrading:
            if before is not None:
                raise self._refused(BadRequest("a websocket cannot begin before earlier requests are answered"))
            return
        self.phase = Phase.BODY
        self.since = 0.0
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = query
        self._framing_bytes = self._window_bytes = 0
        # Trailers are appended to this list after the application has looked at the other: nobody reads them.
        self.headers = []
        cycle = Exchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self._answered,
        )
        cycle.common_head = self.edge.common_head(self.server_state.default_headers, tls=self.scheme == "https")
        self.cycle = cycle
        if before is None:
            self._start(cycle)
            return
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, self.app))
        if len(self.pipeline) >= MAX_PIPELINED:
            self._last_request()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body until the application asks for it."""
        self._framing_bytes = 0
        cycle = self.cycle
        if self._upgrading or self._deaf or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > READ_AHEAD_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End a request."""
        if self._upgrading:
            return
        cycle = self.cycle
        cycle.more_body = False
        self.since = 0.0
        if cycle.response_complete:
            self.phase = Phase.IDLE
        else:
            self.phase = Phase.ANSWER
            cycle.message_event.set()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to the websocket's protocol, which the watch looks after from now on."""
        if self.lane_fd >= 0:
            self.leave_lane()
            self.wire.resume_reading()
        self.phase = Phase.WEBSOCKET
        super().handle_websocket_upgrade()
        self.edge.watch.connections.discard(self)
        protocol = cast("FleetWebSocketProtocol", cast("Any", self.transport).get_protocol())
        protocol.taken_over(self.edge, self.peer, self.wire)

    # ------------------------------------------------------------------ answers

    def _start(self, cycle: Exchange) -> None:
        self._running = cycle
        self._start_asgi_task(cycle, self.app)

    def _unanswered(self) -> Exchange | None:
        """Return the last request whose head is complete, if its answer is not."""
        cycle: Exchange | None = cast("Any", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _answered(self, cycle: Exchange) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if cycle.more_body and not self._is_short(cycle):
            self._leave()
        elif not cycle.keep_alive:
            if cycle.more_body or self._deaf:
                self._leave()
            else:
                self.transport.close()
        else:
            self.flow.resume_reading()
            if self.pipeline:
                self._start(cast("Exchange", self.pipeline.pop()[0]))
            elif self.phase is Phase.ANSWER:
                self.phase = Phase.IDLE
                self.since = 0.0

    def _is_short(self, cycle: Exchange) -> bool:
        """Whether the rest of a body that nobody wants is little enough to be read for the connection's sake."""
        lengths = [value for name, value in cycle.scope["headers"] if name == b"content-length"]
        return len(lengths) == 1 and len(lengths[0]) < 6 and int(lengths[0]) <= READ_AHEAD_BYTES

    def _last_request(self) -> None:
        """Read nothing more; leave when what was asked so far is answered."""
        self._deaf = True
        self.cycle.keep_alive = False
        if self.phase is Phase.HEAD:
            self.phase = Phase.ANSWER

    def _refused(self, error: FleetError) -> FleetError:
        self._refusal = error
        return error

    def _refuse(self, error: FleetError) -> None:
        """Answer what is no request, or one over a limit, and leave."""
        self.edge.requests_refused[error.code] += 1
        cycle = self._unanswered()
        if cycle is not None:
            if self.phase is not Phase.BODY:
                self._last_request()  # earlier requests are owed their answers
                return
            if cycle.response_started or self.pipeline:
                self.transport.abort()  # its answer, or another one's, is half out
                return
            cycle.disconnected = True
            cycle.message_event.set()
        log.debug("refused a request: %s", error.detail, extra={"action": "refused", "code": error.code})
        body = problem_bytes(error)
        head = self.edge.common_head(self.server_state.default_headers, tls=self.scheme == "https")
        lines = b"".join(b"%s: %s\r\n" % header for header in problem_headers(error, len(body)))
        self.transport.write(
            b"%s%s%s%sconnection: close\r\n\r\n%s" % (STATUS_LINE[error.status], head, lines, DEFAULT_POLICY, body)
        )
        if isinstance(error, TooManyConnections):
            self._deaf = True
            self.transport.close()  # at once: its place is needed
        else:
            self._leave()

    def _leave(self) -> None:
        """Close in a way that our last words arrive: closing while the client still sends would undo them."""
        self._deaf = True
        self.phase = Phase.LEAVING
        self.since = 0.0
        self.flow.resume_reading()
        self.slow_down()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()  # TLS has no half-closed connections

    # ------------------------------------------------------------------ ends

    def expire(self, verdict: Verdict) -> bool:
        """Do what the watch has judged."""
        if verdict is Verdict.ABORT:
            drop(self.transport)
        elif self.transport.is_closing():
            return False  # it is sending its last bytes
        elif verdict is Verdict.CLOSE:
            if self._unanswered() is not None:
                self._last_request()  # a pipelined request is late: the one before it is still being answered
            else:
                self.transport.close()
        elif self._body_may_go_on():
            self.since = 0.0
            self._window_bytes = 0
            return False
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(RequestTimeout(f"the body was not complete after {self.edge.watch.deadlines.body_s:g} s"))
        return True

    def _body_may_go_on(self) -> bool:
        cycle = self.cycle
        if cycle.response_complete:
            return False
        if self.flow.read_paused or cycle.response_started:
            return True  # it is we who do not read, or who are answering already
        deadlines = self.edge.watch.deadlines
        return BY_RATE in cycle.scope and self._window_bytes >= deadlines.body_s * deadlines.body_bytes_per_s

    def turn_away(self) -> None:
        """Make room: another connection needs this one's reserved place."""
        self._refuse(TooManyConnections(retry_after_s=5))

    def resume_writing(self) -> None:
        """The client has taken something."""
        self.stalled_since = 0.0
        super().resume_writing()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"request line and headers may have {MAX_HEAD_BYTES:,} bytes and {MAX_HEADERS} headers", limit=MAX_HEAD_BYTES
    )
