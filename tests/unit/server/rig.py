"""The whole application in this process: ledger and results in memory, an agent made of frames, time that moves by hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from dask_fleet.controller.controller import Controller
from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model.failure import Failure
from dask_fleet.model.jobs import Policy, TokenRecord
from dask_fleet.model.manifest import EndpointManifest, Manifest, ServiceManifest
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import PROTOCOL_VERSION, Frame, Hello, Outcome, Progress, Ready, Start
from dask_fleet.results.memory import MemoryResultStore
from dask_fleet.server.app import FleetApp
from dask_fleet.server.auth import Scope, TokenAuthenticator, digest, new_token
from dask_fleet.server.hosts import HostCheck
from dask_fleet.server.live import LiveRequests
from dask_fleet.server.routes import all_routes
from dask_fleet.server.signin import SignIn
from dask_fleet.server.tokens import TokenBook

VERSION = "v1"
HOST = "127.0.0.1:8000"
ALL_SCOPES = frozenset({str(Scope.SUBMIT), str(Scope.READ)})
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}
MANIFEST = Manifest(
    services=(
        ServiceManifest(
            name="math",
            doc="Numbers.",
            version=VERSION,
            target="math.py",
            endpoints=(
                EndpointManifest(
                    name="f",
                    doc="Compute it.",
                    parameters=PARAMETERS,
                    order=("n",),
                    returns="json",
                    result_schema={"type": "number"},
                    policy=Policy(cache_s=3600),
                ),
            ),
        ),
    )
)


class HandClock:
    """Time that moves by hand."""

    def __init__(self) -> None:
        self.us = 1_800_000_000_000_000

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return self.us / 1e6


class Rig:
    """``async with Rig() as rig``; `rig.http` speaks with a token of the default tenant."""

    def __init__(self, *, manifest: Manifest = MANIFEST, spool: Path = Path("/nonexistent")) -> None:
        self.clock = HandClock()
        self.spool = spool
        self.ledger = MemoryLedger(clock=self.clock)
        self.results = MemoryResultStore()
        self.controller = Controller(
            ledger=self.ledger, results=self.results, manifest=manifest, spool=spool, clock=self.clock
        )
        self.tokens = TokenAuthenticator(self.clock)
        self.live = LiveRequests()
        self.book = TokenBook(self.ledger, self.tokens, self.live)
        self.sign_in = SignIn(self.clock, is_valid=self.tokens.is_valid)
        self.records: list[TokenRecord] = []
        self.token = self.new_token("ann")
        self.app: Any = None
        self.frames: list[Frame] = []
        self._clients: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Self:
        await self.ledger.open()
        await self.controller.start()
        self.app = FleetApp(
            self.controller,
            routes=all_routes(self.controller, sign_in=self.sign_in, tokens=self.book, needs_agent=False, spool=self.spool),
            tokens=self.tokens,
            sign_in=self.sign_in,
            hosts=HostCheck(),
            live=self.live,
        )
        self.http = self.client(self.token)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for client in self._clients:
            await client.aclose()
        await self.controller.close()
        await self.ledger.close()

    def new_token(self, user: str, *, tenant: str = "default", scopes: frozenset[str] = ALL_SCOPES, **times: int) -> str:
        token = new_token()
        self.records.append(
            TokenRecord(
                token_id=f"t{len(self.records)}",
                digest=digest(token),
                user=user,
                tenant=tenant,
                scopes=scopes,
                created_us=self.clock.us,
                **times,
            )
        )
        self.ledger._tokens[self.records[-1].token_id] = self.records[-1]  # the ledger is the truth for the book
        self.tokens.load(self.records)
        return token

    def client(self, token: str | None, **headers: str) -> httpx.AsyncClient:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url=f"http://{HOST}", headers=headers, timeout=10
        )
        self._clients.append(client)
        return client

    # ------------------------------------------------------------------ an agent

    def attach(self, *, slots: int = 4) -> None:
        """Let an agent dial in that has all services loaded."""
        hello = Hello(protocol=PROTOCOL_VERSION, agent="local-a", name="local", pid=0, slots=slots, ledger_id="", held=[])
        self._handle = self.controller.sessions.attach(hello, self.frames.append)
        self.tell(Ready(versions=self.controller.versions, problems={}, slots=slots))

    def tell(self, *frames: Any) -> None:
        self.controller.sessions.receive(self._handle, list(frames))

    async def started(self) -> Start:
        """Return the next start that the agent was told."""
        await until(lambda: any(isinstance(frame, Start) for frame in self.frames))
        start = next(frame for frame in self.frames if isinstance(frame, Start))
        self.frames.remove(start)
        return start

    def progress(self, start: Start, done: float, total: float, text: str = "") -> None:
        self.tell(Progress(start.seq, start.run, start.attempt, done, total, text))

    def end(self, start: Start, state: AttemptState, **rest: Any) -> None:
        self.tell(
            Outcome(
                seq=start.seq,
                run=start.run,
                attempt=start.attempt,
                state=state,
                worker="w1",
                finished_us=self.clock.us,
                **rest,
            )
        )

    def succeed(self, start: Start, body: bytes, *, media_type: str = "application/json", json: bytes | None = None) -> None:
        self.end(
            start,
            AttemptState.SUCCEEDED,
            media_type=media_type,
            digest=hashlib.sha256(body).hexdigest(),
            size=len(body),
            body=body,
            json=json,
        )

    def fail(self, start: Start, failure: Failure) -> None:
        self.end(start, AttemptState.FAILED, failure=failure)

    # ------------------------------------------------------------------ whole jobs

    async def submit(self, n: int = 1, *, query: str = "", **headers: str) -> str:
        """POST a call, return its job's id."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.http.post(f"/v1/math/f{query}", json={"n": n}, headers=sent)
        assert answer.status_code in {200, 202}, answer.text
        job_id: str = answer.json()["job_id"]
        return job_id

    async def finished(
        self, n: int = 1, *, body: bytes = b"1", media_type: str = "application/json", json: bytes | None = None
    ) -> str:
        """Have a job run to its result; return its id."""
        if not hasattr(self, "_handle"):
            self.attach()
        job_id = await self.submit(n)
        self.succeed(await self.started(), body, media_type=media_type, json=json)
        await self.http.get(f"/v1/jobs/{job_id}?wait=5")
        return job_id

    async def stored(self, spool: Path, body: bytes, *, media_type: str = "application/octet-stream") -> str:
        """Have a job run to a result that lies in the result store; return its id."""
        if not hasattr(self, "_handle"):
            self.attach()
        job_id = await self.submit(77)
        start = await self.started()
        (spool / "s1").write_bytes(body)
        self.end(
            start,
            AttemptState.SUCCEEDED,
            media_type=media_type,
            digest=hashlib.sha256(body).hexdigest(),
            size=len(body),
            spool="s1",
        )
        document = (await self.http.get(f"/v1/jobs/{job_id}?wait=5")).json()
        assert document["status"] == "succeeded", document
        return job_id


async def until(condition: Callable[[], Any], *, timeout_s: float = 5.0) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds, none with an event
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a task that is left over is a leak."""

    async def guarded() -> None:
        before = asyncio.all_tasks()
        await main
        left = asyncio.all_tasks() - before
        assert not left, left

    asyncio.run(guarded())


class Exchange:
    """One request on bare ASGI, for what an HTTP library would hide: pieces, their number, leaving in the middle."""

    def __init__(
        self,
        app: Any,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: Sequence[bytes] = (b"",),
    ) -> None:
        parts = urlsplit(target)
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            "state": {},
        }
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for number, piece in enumerate(body, 1):
            self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": number < len(body)})
        self.received = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.data = bytearray()
        self.ended = False
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._app(self._scope, self._receive, self._send), name="exchange")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.leave()
        async with asyncio.timeout(5):
            await self.task

    def leave(self) -> None:
        """Disconnect."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def whole(self) -> bytes:
        """Return the body once the answer is complete."""
        await until(lambda: self.ended)
        return bytes(self.data)

    async def contains(self, text: bytes) -> None:
        """Return once the body contains `text`."""
        await until(lambda: text in self.data)

    async def _receive(self) -> dict[str, Any]:
        self.received += 1
        return await self._messages.get()

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.data += message.get("body", b"")
            self.ended = not message.get("more_body", False)


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """Return the blocks of an event stream as their fields, ``data`` decoded; comments as ``{"": text}``."""
    blocks: list[dict[str, Any]] = []
    for block in stream.decode().split("\n\n"):
        fields: dict[str, Any] = {}
        for line in block.splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        if "data" in fields:
            fields["data"] = msgspec.json.decode(fields["data"])
        if fields:
            blocks.append(fields)
    return blocks
