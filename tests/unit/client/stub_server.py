"""A stand-in for the HTTP API that a test steers: it answers over a real socket, with as little behaviour as can be."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN = "stub-token"
PARAMETERS = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0},
        "base": {"type": "number", "default": 1.0},
        "origin": {"anyOf": [{"enum": ["EWR", "JFK"]}, {"type": "null"}], "default": None},
    },
    "required": ["n"],
    "additionalProperties": False,
}


def endpoint(name: str, doc: str = "", *, pure: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "doc": doc,
        "parameters": PARAMETERS,
        "order": ["n", "base", "origin"],
        "returns": "json",
        "result_schema": None,
        "policy": {"pure": pure},
    }


SERVICES = {
    "services": [
        {
            "name": "math",
            "doc": "Sums.",
            "version": "v1",
            "endpoints": [
                endpoint("fibonacci", "The n-th Fibonacci number."),
                endpoint("slow", "Ends when it is told to."),
                endpoint("fail", "Fails."),
                endpoint("words", "Answers text."),
                endpoint("roll", "A die.", pure=False),
            ],
        }
    ]
}

_ENDS = {"succeeded", "failed", "cancelled", "expired"}


class Stub:
    """The server's state; tests read and write it from their own thread."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.faults: deque[Any] = deque()
        """What to answer next instead: ``(status, headers, problem)``, ``"drop"`` to break the connection, or
        bytes: the beginning of a result of 210 bytes before it breaks."""
        self.rooms: deque[int] = deque()
        """How many sets the next batches find room for."""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.bodies: dict[str, bytes] = {}
        self.ranges = True
        self.break_stream_after = 0
        """Break an event stream after so many events (0: never)."""
        self.arrived = threading.Event()
        """Set by each request."""
        self.routes = self._routes()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.changed: asyncio.Event | None = None

    def finish(self, job_id: str, status: str = "succeeded", **changes: Any) -> None:
        """End a job from another thread."""
        assert self.loop is not None
        done = threading.Event()

        def change() -> None:
            self.jobs[job_id] |= {"status": status, **changes}
            self.note(job_id, status)
            done.set()

        self.loop.call_soon_threadsafe(change)
        assert done.wait(5)

    def note(self, job_id: str, kind: str, data: dict[str, Any] | None = None) -> None:
        events = self.events.setdefault(job_id, [])
        number = None if kind in {"progress", "log"} else 1 + sum(event["event_id"] is not None for event in events)
        run = self.jobs[job_id]["run"]
        at = "2026-01-01T00:00:00Z"
        if number is None:
            events.append({"event_id": None, "run": run, "attempt": 1, "kind": kind, **(data or {})})
        else:
            events.append({"event_id": number, "run": run, "attempt": 1, "kind": kind, "at": at, "data": data or {}})
        if self.changed is not None:
            self.changed.set()
            self.changed.clear()

    def sent(self, method: str, path: str) -> list[dict[str, str]]:
        """Return the headers of the requests that came for a path."""
        return [headers for verb, where, headers, _ in self.requests if (verb, where.partition("?")[0]) == (method, path)]

    # ------------------------------------------------------------------ routes

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.routes(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body()
        path = scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        self.arrived.set()
        self.requests.append((request.method, path, dict(request.headers), body))
        if request.headers.get("authorization") != f"Bearer {TOKEN}" and not path.startswith(("/healthz", "/readyz")):
            await problem(401, "unauthorized", "no token")(scope, receive, send)
            return
        if self.faults:
            fault = self.faults.popleft()
            if isinstance(fault, bytes):
                headers = [(b"content-length", b"210"), (b"etag", b'"abc"'), (b"content-type", b"text/plain")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": fault})
                return
            if fault == "drop":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
                await send({"type": "http.response.body", "body": b"{"})
                return  # shorter than announced: uvicorn breaks the connection
            status, headers, document = fault
            await JSONResponse(document, status, headers, "application/problem+json")(scope, receive, send)
            return
        replay = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return replay.pop() if replay else await receive()

        await self.routes(scope, again, send)

    def _routes(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/healthz", lambda _: Response("ok")),
                Route("/readyz", lambda _: Response("ready")),
                Route("/v1/services", fixed(SERVICES)),
                Route("/v1/status", fixed(STATUS)),
                Route("/v1/jobs", self.list_jobs),
                Route("/v1/jobs/{job_id}:retry", self.retry, methods=["POST"]),
                Route("/v1/jobs/{job_id}", self.get_job),
                Route("/v1/jobs/{job_id}", self.cancel, methods=["DELETE"]),
                Route("/v1/jobs/{job_id}/result", self.result),
                Route("/v1/jobs/{job_id}/events", self.stream),
                Route("/v1/jobs/{job_id}/attempts", fixed({"attempts": [{"attempt": 1}]})),
                Route("/v1/{service}/{endpoint}:batch", self.submit_batch, methods=["POST"]),
                Route("/v1/{service}/{endpoint}", self.submit, methods=["POST"]),
            ]
        )

    async def submit_batch(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key")
        items: list[dict[str, Any]] = []
        room = self.rooms.popleft() if self.rooms else None
        for index, line in enumerate((await request.body()).splitlines()):
            if room is not None and index >= room:
                full = {"status": 429, "code": "queue_full", "detail": "full"}
                items.append({"index": index, "error": full})
                continue
            answer = self.enter(request, json.loads(line), key=None if key is None else f"{key}-{index}")
            document = json.loads(bytes(answer.body))
            if answer.status_code >= 400:
                items.append({"index": index, "error": document})
            else:
                items.append({"index": index, "job_id": document["job_id"], "status": document["status"]})
        return JSONResponse({"items": items}, 202, {"Retry-After": "0"})

    async def submit(self, request: Request) -> Response:
        return self.enter(request, await request.json(), key=request.headers.get("idempotency-key"))

    def enter(self, request: Request, params: dict[str, Any], *, key: str | None) -> Response:
        service, name = request.path_params["service"], request.path_params["endpoint"]
        if name not in {entry["name"] for entry in SERVICES["services"][0]["endpoints"]}:
            return problem(404, "not_found", f"no endpoint {service}.{name}")
        if not isinstance(params.get("n"), int):
            return problem(422, "invalid_parameters", "n is wrong", errors=[{"loc": ["n"], "msg": "Field required"}])
        nonce = "" if name != "roll" else key or str(len(self.jobs))
        job_id = f"{name}{params['n']}{nonce}".lower()
        if job_id not in self.jobs or request.query_params.get("refresh"):
            self.jobs[job_id] = new_job(job_id, service, name, params, request)
            self.note(job_id, "accepted")
            if name == "fibonacci":
                value = fibonacci(params["n"])
                size = len(json.dumps(value))
                self.jobs[job_id] |= {"result": value, "result_size": size, "result_media_type": "application/json"}
                self.bodies[job_id] = json.dumps(value).encode()
            elif name == "words":
                self.bodies[job_id] = b"a text of some length" * 10
                self.jobs[job_id] |= {"result_media_type": "text/plain", "result_size": 210}
            elif name == "fail":
                error = {"cause": "exception", "message": "no luck", "type": "ValueError", "traceback": "line 7"}
                self.jobs[job_id]["error"] = error
            if name != "slow":
                self.jobs[job_id]["status"] = "failed" if name == "fail" else "succeeded"
                self.note(job_id, self.jobs[job_id]["status"])
        return JSONResponse(self.jobs[job_id], 200 if name != "slow" else 202)

    async def get_job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            return problem(404, "not_found", "no such job")
        try:
            async with asyncio.timeout(float(request.query_params.get("wait", 0))):
                while job["status"] in {"queued", "running"}:
                    assert self.changed is not None
                    await self.changed.wait()
        except TimeoutError:
            pass
        return JSONResponse(job)

    async def cancel(self, request: Request) -> Response:
        job = self.jobs[request.path_params["job_id"]]
        job["status"] = "cancelled"
        self.note(job["job_id"], "cancelled")
        return JSONResponse(job)

    async def retry(self, request: Request) -> Response:
        job = self.jobs[request.path_params["job_id"]]
        if job["status"] == "succeeded":
            return problem(409, "conflict", "it succeeded", job_status="succeeded")
        job |= {"status": "queued", "run": job["run"] + 1, "error": None}
        return JSONResponse(job, 202)

    async def result(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        body = self.bodies[job_id]
        headers = {"ETag": '"abc"'}
        if "range" in request.headers and self.ranges:
            start = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))
            return Response(body[start:], 206, headers, self.jobs[job_id]["result_media_type"])
        return Response(body, 200, headers, self.jobs[job_id]["result_media_type"])

    async def stream(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        after = int(request.headers.get("last-event-id", 0))
        known = self.events[job_id]
        if self.jobs[job_id]["status"] in _ENDS and not any((event["event_id"] or 0) > after for event in known):
            return Response(status_code=204)

        async def lines() -> AsyncIterator[str]:
            yield ": keep-alive\n\n"
            position = given = 0
            while True:
                events = self.events[job_id]
                while position < len(events):
                    event = events[position]
                    position += 1
                    if (event["event_id"] or after + 1) <= after:
                        continue
                    number = f"id: {event['event_id']}\n" if event["event_id"] else ""
                    yield f"event: {event['kind']}\n{number}data: {json.dumps(event)}\n\n"
                    given += 1
                    if given == self.break_stream_after:
                        self.break_stream_after = 0
                        return
                if any(event["kind"] in _ENDS for event in events):
                    return
                assert self.changed is not None
                await self.changed.wait()

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def list_jobs(self, request: Request) -> Response:
        query = request.query_params
        found = [
            job
            for job in reversed(self.jobs.values())
            if all(job[name] == query[name] for name in ("status", "service", "endpoint") if name in query)
            and ("tag" not in query or query["tag"] in job["tags"])
        ]
        start, limit = int(query.get("cursor", 0)), int(query.get("limit", 50))
        more = start + limit < len(found)
        page = found[start : start + limit]
        return JSONResponse({"jobs": page, "next_cursor": str(start + limit) if more else None})


STATUS = {
    "version": "0.1.0",
    "queued": 0,
    "running": 0,
    "draining": False,
    "agents": [{"name": "local", "slots": 2, "free": 2, "connected": True}],
}


def fixed(document: Any) -> Any:
    """Return a handler for a page that never changes; it runs on the loop, so that no further thread turns up."""

    async def answer(_: Request) -> Response:
        return JSONResponse(document)

    return answer


def problem(status: int, code: str, detail: str, **extra: Any) -> Response:
    document = {"type": f"urn:x:{code}", "title": code, "status": status, "detail": detail, "code": code, **extra}
    return JSONResponse(document, status, media_type="application/problem+json")


def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def new_job(job_id: str, service: str, name: str, params: dict[str, Any], request: Request) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "status": "queued",
        "service": service,
        "endpoint": name,
        "version": "v1",
        "params": params,
        "user": "me",
        "tags": [tag for tag in request.headers.get("fleet-tags", "").split(",") if tag],
        "priority": int(request.headers.get("fleet-priority", 0)),
        "deadline": None,
        "run": 1,
        "attempt": 1,
        "reason": "post",
        "created_at": "2026-01-01T00:00:00.000000Z",
        "opened_at": "2026-01-01T00:00:00.000000Z",
        "started_at": None,
        "finished_at": None,
        "result_expires_at": None,
        "waiting_for": None,
        "progress": None,
        "error": None,
        "result": None,
        "result_media_type": None,
        "result_size": None,
        "links": {"self": f"/v1/jobs/{job_id}"},
    }


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def running_stub() -> Iterator[Stub]:
    """Serve a stub on a free port in a thread; when this ends, so have the thread and its sockets."""
    stub = Stub()
    # With the protocol named, asyncio sets TCP_NODELAY; without, each answer would wait 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        stub.app, log_level="critical", interface="asgi3", lifespan="off", ws="none", timeout_graceful_shutdown=0
    )
    server = _Server(config)

    async def serve() -> None:
        stub.loop, stub.changed = asyncio.get_running_loop(), asyncio.Event()
        await server.serve([listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="stub server")
    thread.start()
    try:
        assert server.ready.wait(10)
        yield stub
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()
