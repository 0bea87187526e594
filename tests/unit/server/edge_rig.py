"""The HTTP edge alone, on a real socket in this process: our protocol before a small application, with short deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import uvicorn
import uvloop
from uvicorn.server import ServerState

from dask_fleet.server.admission import Admission
from dask_fleet.server.body import BY_RATE, ClientDisconnectedError, read_body
from dask_fleet.server.deadlines import Deadlines, Watch
from dask_fleet.server.edge import Edge
from dask_fleet.server.http_protocol import FleetHTTPProtocol
from dask_fleet.server.listening import listen
from dask_fleet.server.tls_listener import SecuredHTTPProtocol, TLSListener
from dask_fleet.server.websocket_protocol import FleetWebSocketProtocol

SHORT = Deadlines(head_s=0.4, body_s=0.6, body_bytes_per_s=1_000, idle_s=0.3, stall_s=0.6, leaving_s=0.3)
PATIENCE_S = 20.0


class Application:
    """Answers by path, and remembers what became of each request."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                pass
            self.log.append("websocket ended")
            return
        path = scope["path"]
        try:
            if path in {"/body", "/upload"}:
                if path == "/upload":
                    scope[BY_RATE] = True
                body = await read_body(scope, receive)
                await answer(send, b"%d" % len(body))
            elif path == "/wait":
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.log.append("left")
            elif path == "/large":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                for _ in range(2_000):
                    await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                self.log.append("sent")
            elif path == "/split":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nset-cookie: b")]})
            else:
                await answer(send, path.encode())
        except ClientDisconnectedError:
            self.log.append("disconnected")


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class EdgeRig:
    """``with EdgeRig() as rig``; a loop in a thread of its own serves while the block lasts."""

    def __init__(
        self,
        deadlines: Deadlines = SHORT,
        *,
        max_connections: int = 1_000,
        max_per_peer: int = 500,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.application = Application()
        self.edge = Edge(
            Admission(max_connections=max_connections, max_per_peer=max_per_peer), Watch(deadlines, tick_s=0.05)
        )
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        config = uvicorn.Config(
            self.application,
            ws=FleetWebSocketProtocol,
            ws_ping_interval=None,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
        )
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"now")]
        with listen("127.0.0.1", 0) as listener:
            self.port = listener.getsockname()[1]
            await self._serve_on(listener, config, state)

    async def _serve_on(self, listener: socket.socket, config: uvicorn.Config, state: ServerState) -> None:
        server: Any
        if self._tls is None:
            server = await self._loop.create_server(
                lambda: FleetHTTPProtocol(config, state, {}, edge=self.edge), sock=listener, backlog=512
            )
        else:
            server = TLSListener(
                listener,
                self._tls,
                lambda handshake: SecuredHTTPProtocol(config, state, {}, edge=self.edge, handshake=handshake),
                self.edge,
                within_s=self.edge.watch.deadlines.head_s,
            )
        async with self.edge.watching():
            self._ready.set()
            await self._stop.wait()
        server.close()
        if self._tls is not None:
            await server.wait_closed()
        for connection in list(state.connections):
            connection.transport.abort()
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # the last callbacks of closed transports

    # ------------------------------------------------------------------ the other side

    @contextlib.contextmanager
    def dial(self, *, source: str = "127.0.0.1") -> Iterator[socket.socket]:
        with socket.socket() as sock:
            sock.settimeout(PATIENCE_S)
            sock.bind((source, 0))
            sock.connect(("127.0.0.1", self.port))
            yield sock

    def ask(self, *pieces: bytes) -> bytes:
        """Send bytes as they are; return all that comes until the server closes."""
        with self.dial() as sock:
            for piece in pieces:
                sock.sendall(piece)
            return heard(sock)

    def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.01)


def heard(sock: socket.socket) -> bytes:
    """Return what comes until the end; a reset is an end too."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65_536):
            data += piece
    return data


def status_of(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])
