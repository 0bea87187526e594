"""The load generator: one process with asyncio, uvloop and raw sockets, HTTP/1.1 with keep-alive.

Our own, because a general client in Python would itself be what is measured. It speaks just the HTTP that the systems under
test answer with: a status line, headers with ``Content-Length``, a body.

    python -m benchmarks.generator '{"url": "http://127.0.0.1:8000", "path": "/v1/bench/add_one", …}'

Each connection sends its next call when the last one has its result. `mode` ``wait``: one POST is answered with the
result (``Prefer: wait``). `mode` ``poll``: a POST is answered with an id, which is asked for every 5 ms until the result is
there. A call that is not answered with its result within 30 s, or with a wrong one, is an error; errors are counted and fail
the benchmark.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

POLL_S = 0.005
CALL_TIMEOUT_S = 30.0


class Load(msgspec.Struct, kw_only=True, frozen=True):
    """What to do."""

    url: str
    path: str
    mode: str
    connections: int
    calls: int
    first: int = 0
    """Parameter of the first call; each call has the next, so that all are fresh."""
    repeated: bool = False
    """Whether all calls have the same parameter."""
    headers: dict[str, str] = {}
    poll_path: str = "/jobs/"


class Figures(msgspec.Struct, kw_only=True, frozen=True):
    """What came of it; times in milliseconds."""

    calls: int
    errors: int
    first_error: str
    seconds: float
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        at = head.lower().find(b"\r\ncontent-length:")
        if at < 0:
            self._end(ConnectionError(f"an answer without Content-Length: {head[:200]!r}"))
            return
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = body[length:]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("the server closed the connection"))

    def _end(self, exc: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc)

    async def request(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


class Generator:
    """Runs one load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        parts = urlsplit(load.url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        extra = "".join(f"{name}: {value}\r\n" for name, value in load.headers.items())
        self._common = f"Host: {self.host}:{self.port}\r\n{extra}"
        self._post_head = f"POST {load.path} HTTP/1.1\r\n{self._common}Content-Type: application/json\r\nContent-Length: "
        self.latencies: list[float] = []
        self.errors = 0
        self.first_error = ""
        self._next = load.first

    def _post(self, n: int) -> bytes:
        body = b'{"n":%d}' % n
        return f"{self._post_head}{len(body)}\r\n\r\n".encode() + body

    async def _call(self, connection: Connection, n: int) -> None:
        status, body = await connection.request(self._post(n))
        if self.load.mode == "poll" and status == 202:
            poll = f"GET {self.load.poll_path}{msgspec.json.decode(body)['id']} HTTP/1.1\r\n{self._common}\r\n".encode()
            while status == 202:
                await asyncio.sleep(POLL_S)
                status, body = await connection.request(poll)
        if status != 200:
            raise ValueError(f"{status} {body[:300]!r}")
        result = msgspec.json.decode(body)["result"]
        if result != n + 1:
            raise ValueError(f"{n} gave {result!r}")

    async def _connection(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await asyncio.wait_for(loop.create_connection(Connection, self.host, self.port), 10)
        assert connection.transport is not None
        try:
            while self._next < self.load.first + self.load.calls:
                n = self._next
                self._next += 1
                begin = time.perf_counter()
                try:
                    # A timer per call, not a task per call: the generator must not be what is measured.
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await self._call(connection, self.load.first if self.load.repeated else n)
                except (ValueError, KeyError, OSError, msgspec.MsgspecError) as exc:
                    self.errors += 1
                    self.first_error = self.first_error or repr(exc)
                    if isinstance(exc, OSError):  # time-outs too: the connection is of no use any more
                        return
                self.latencies.append(time.perf_counter() - begin)
        finally:
            connection.transport.close()

    async def run(self) -> Figures:
        """Run the load and return its figures."""
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for i in range(self.load.connections):
                group.create_task(self._connection(), name=f"connection {i}")
        seconds = time.perf_counter() - begin
        ordered = sorted(self.latencies) or [0.0]

        def quantile_ms(share: float) -> float:
            return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        good = len(self.latencies) - self.errors
        return Figures(
            calls=len(self.latencies),
            errors=self.errors,
            first_error=self.first_error,
            seconds=seconds,
            per_second=good / seconds,
            p50_ms=quantile_ms(0.5),
            p95_ms=quantile_ms(0.95),
            p99_ms=quantile_ms(0.99),
        )


def main() -> None:
    """Read a load from the command line, run it, print its figures as JSON."""
    load = msgspec.convert(json.loads(sys.argv[1]), Load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures: Any = runner.run(Generator(load).run())
    print(msgspec.json.encode(figures).decode())


if __name__ == "__main__":
    main()
