"""``/v1/jobs/{id}/logs``: what a job's attempts wrote, as plain text, or what there is of it, as JSON."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import NotAcceptable, RangeNotSatisfiable
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.logs import MAX_LOG_BYTES, LogStream
from dask_fleet.server.auth import Scope, principal_of, require
from dask_fleet.server.log_text import LogQuery, joined, last_attempts, last_lines, parse_log_query
from dask_fleet.server.methods import Methods
from dask_fleet.server.negotiation import choose
from dask_fleet.server.problems import problem_response
from dask_fleet.server.query import query_of
from dask_fleet.server.ranges import part
from dask_fleet.server.routes_jobs import json_response

_TEXT, _JSON = "text/plain", "application/json"
_HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Accept",
    # Jobs write what they like: no browser shall take it for a page of ours, or run any of it.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def routes(controller: Controller) -> list[BaseRoute]:
    """Return the route of logs."""
    return [Route("/v1/jobs/{job_id}/logs", Methods(GET=_Logs(controller).give))]


class _Logs:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def give(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        asked = parse_log_query(query_of(request, {"stream", "attempt", "tail", "offset"}))
        job = await self._controller.find(request.path_params["job_id"], principal.tenant)
        chosen = choose(", ".join(request.headers.getlist("accept")) or None, [_TEXT, _JSON])
        if chosen is None:
            raise NotAcceptable(f"logs can be given as {_TEXT} or {_JSON}", available=[_TEXT, _JSON])
        if chosen == _JSON:
            return json_response(await self._listing(job, asked), headers={"Vary": "Accept"})
        if len(asked.streams) == 1:
            return await self._single(request, job, asked)
        return await self._all(job, asked)

    async def _all(self, job: JobRecord, asked: LogQuery) -> Response:
        attempt = asked.attempt or job.attempt
        parts = {stream: await self._controller.logs.read(job.seq, attempt, stream) for stream in asked.streams}
        if asked.tail is not None:
            parts = {stream: last_lines(data, asked.tail) for stream, data in parts.items()}
        return _text(joined(parts, attempt), attempt)

    async def _single(self, request: Request, job: JobRecord, asked: LogQuery) -> Response:
        (stream,) = asked.streams
        attempt = asked.attempt or job.attempt
        data = await self._controller.logs.read(job.seq, attempt, stream, asked.offset or 0, MAX_LOG_BYTES)
        if asked.tail is not None:
            return _text(last_lines(data, asked.tail), attempt)
        if asked.offset is not None:
            return _text(data, attempt)
        try:
            asked_part = part(request.headers.get("range"), len(data)) if request.method == "GET" else None
        except RangeNotSatisfiable as exc:
            response = problem_response(exc)
            response.headers["Content-Range"] = f"bytes */{len(data)}"
            return response
        if asked_part is None:
            response = _text(data, attempt)
        else:
            start, stop = asked_part
            response = _text(data[start:stop], attempt, status_code=206)
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        response.headers["Accept-Ranges"] = "bytes"
        return response

    async def _listing(self, job: JobRecord, asked: LogQuery) -> dict[str, Any]:
        """Say what there is, attempt by attempt."""
        attempts = [asked.attempt] if asked.attempt is not None else last_attempts(job.attempt)
        sizes = await self._controller.logs.sizes(job.seq, attempts)
        documents: list[dict[str, Any]] = []
        for attempt in attempts:
            there = {stream: sizes[attempt, stream] for stream in asked.streams if (attempt, stream) in sizes}
            documents.append({"attempt": attempt, "streams": [_stream(job, attempt, *item) for item in there.items()]})
        return {"job_id": job.job_id, "attempts": documents}


def _stream(job: JobRecord, attempt: int, stream: LogStream, size: int) -> dict[str, Any]:
    link = f"/v1/jobs/{job.job_id}/logs?attempt={attempt}&stream={stream}"
    return {"stream": stream.value, "size": size, "link": link}


def _text(data: bytes, attempt: int, *, status_code: int = 200) -> Response:
    return Response(
        data,
        status_code=status_code,
        media_type="text/plain; charset=utf-8",
        headers={**_HEADERS, "Fleet-Attempt": str(attempt)},
    )
