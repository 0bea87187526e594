"""``/v1/jobs/{id}/result``: the bytes a job left, in the form the caller asks for."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import (
    FleetError,
    JobCancelled,
    JobExpired,
    JobFailed,
    NotAcceptable,
    PreconditionFailed,
    RangeNotSatisfiable,
    ResultCorrupt,
    ResultExpired,
)
from dask_fleet.model.jobs import JobRecord, StoredResult
from dask_fleet.model.states import RunState
from dask_fleet.server.auth import Scope, principal_of, require
from dask_fleet.server.documents import job_document
from dask_fleet.server.methods import Methods
from dask_fleet.server.negotiation import choose
from dask_fleet.server.problems import problem_response
from dask_fleet.server.query import query_of, wait_s
from dask_fleet.server.ranges import names_tag, part, range_applies
from dask_fleet.server.rendering import RENDERABLE, Renderer
from dask_fleet.server.routes_jobs import json_response, unfinished_headers
from dask_fleet.server.streaming import Streamed
from dask_fleet.server.verified import Verified

_JSON = "application/json"
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,100}/[\w!#$&^.+-]{1,100}(?:; ?charset=[\w-]{1,40})?\Z", re.ASCII)
_SUFFIXES = {
    _JSON: "json",
    "application/vnd.apache.arrow.stream": "arrows",
    "application/x-npy": "npy",
    "image/png": "png",
    "text/plain": "txt",
}
_JSON_ON_REQUEST_ONLY = frozenset({"image/png", "application/octet-stream"})
"""Forms that JSON can only carry as base64: they are given as they are unless JSON is asked for."""


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a result can be given."""

    media_type: str
    is_stored: bool
    """Whether these are the stored bytes, with their digest and size; else a rendering."""


def routes(controller: Controller) -> list[BaseRoute]:
    """Return the route of results."""
    return [Route("/v1/jobs/{job_id}/result", Methods(GET=_Results(controller).give))]


def why_none(job: JobRecord) -> FleetError | None:
    """Return why a job has no result to give, or ``None`` if it is not finished yet."""
    if not job.state.is_terminal:
        return None
    if job.state is RunState.SUCCEEDED:
        return ResultExpired("the result was kept as long as the endpoint says and is gone; POST the request again")
    if job.state is RunState.FAILED:
        message = job.failure.message if job.failure is not None else "the job failed"
        return JobFailed(message, failure=job.failure, job_status=job.state.value)
    if job.state is RunState.CANCELLED:
        by = f" by {job.cancel_requested_by}" if job.cancel_requested_by else ""
        return JobCancelled(f"the job was cancelled{by}", failure=job.failure, job_status=job.state.value)
    return JobExpired("the job's deadline passed before it ran", failure=job.failure, job_status=job.state.value)


def forms_of(result: StoredResult) -> list[Form]:
    """Return the forms of a result, the preferred one first."""
    stored = Form(media_type=safe_media_type(result.media_type), is_stored=True)
    plain = _plain(stored.media_type)
    if plain == _JSON:
        return [stored]
    if result.json is None and plain not in RENDERABLE:
        return [stored]
    rendered = Form(media_type=_JSON, is_stored=False)
    return [stored, rendered] if plain in _JSON_ON_REQUEST_ONLY else [rendered, stored]


def safe_media_type(media_type: str) -> str:
    """Return a media type that may stand in a header. It comes from a worker, where user code runs."""
    return media_type if _MEDIA_TYPE.match(media_type) else "application/octet-stream"


def etag_of(result: StoredResult, form: Form) -> str:
    """Return the strong tag of a form: the digest, marked where it is a rendering of those bytes."""
    return f'"{result.digest}"' if form.is_stored else f'"{result.digest}-json"'


def headers_of(job: JobRecord, result: StoredResult, form: Form) -> dict[str, str]:
    """Return the headers of a form, with which no browser will ever run it as part of our origin."""
    suffix = _SUFFIXES.get(_plain(form.media_type), "bin")
    return {
        "ETag": etag_of(result, form),
        "Vary": "Accept",
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes" if form.is_stored else "none",
        "Content-Disposition": f'attachment; filename="{job.job_id}.{suffix}"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Fleet-Run": str(result.run),
    }


class _Results:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._verified = Verified(controller.results)
        self._renderer = Renderer()

    async def give(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        seconds = wait_s(query_of(request, {"wait"}))
        job = await self._controller.find(request.path_params["job_id"], principal.tenant)
        if seconds:
            job = await self._controller.wait(job, seconds)
        result: StoredResult | None = None
        # A refresh under way goes on serving the old result; one that failed must be seen to have failed.
        if job.state is RunState.SUCCEEDED or not job.state.is_terminal:
            result = await self._controller.result(job)
        if result is None:
            if (error := why_none(job)) is not None:
                raise error
            return json_response(job_document(self._controller, job), status_code=202, headers=unfinished_headers(job))
        return await self._give(request, job, result)

    async def _give(self, request: Request, job: JobRecord, result: StoredResult) -> Response:
        forms = forms_of(result)
        accept = ", ".join(request.headers.getlist("accept")) or None
        chosen = choose(accept, [form.media_type for form in forms])
        if chosen is None:
            available = [form.media_type for form in forms]
            raise NotAcceptable(f"the result can be given as {' or '.join(available)}", available=available)
        form = next(form for form in forms if form.media_type == chosen)
        headers = headers_of(job, result, form)
        etag = headers["ETag"]
        if_match = request.headers.get("if-match")
        if if_match is not None and not names_tag(if_match, etag, weakly=False):
            raise PreconditionFailed("the result is not the one that If-Match names")
        if_none_match = request.headers.get("if-none-match")
        if if_none_match is not None and names_tag(if_none_match, etag, weakly=True):
            return Response(status_code=304, headers=headers)
        if not form.is_stored:
            return await self._rendered(request, result, headers)
        return await self._stored(request, result, form, headers)

    async def _stored(self, request: Request, result: StoredResult, form: Form, headers: dict[str, str]) -> Response:
        asked: tuple[int, int] | None = None
        if request.method == "GET" and range_applies(request.headers.get("if-range"), headers["ETag"]):
            try:
                asked = part(request.headers.get("range"), result.size)
            except RangeNotSatisfiable as exc:
                response = problem_response(exc)
                response.headers["Content-Range"] = f"bytes */{result.size}"
                return response
        start, stop = asked or (0, result.size)
        status = 200 if asked is None else 206
        headers["Content-Type"] = form.media_type
        headers["Content-Length"] = str(stop - start)
        if asked is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{result.size}"
        if result.body is not None:
            body = result.body[start:stop] if request.method == "GET" else b""
            response = Response(body, status_code=status, headers=headers)
            response.headers["Content-Length"] = str(stop - start)
            return response
        location = _location(result)
        await self._verified.check(location, digest=result.digest, size=result.size)
        return Streamed(_read(self._controller, location, start, stop), status_code=status, headers=headers)

    async def _rendered(self, request: Request, result: StoredResult, headers: dict[str, str]) -> Response:
        headers["Content-Type"] = _JSON
        if result.json is not None:
            return Response(result.json, headers=headers)
        if request.method == "HEAD":
            response = Response(headers=headers)
            del response.headers["content-length"]  # known only once it is rendered
            return response
        if result.body is None:
            await self._verified.check(_location(result), digest=result.digest, size=result.size)
        pieces = await self._renderer.start(_plain(result.media_type), _bytes_of(self._controller, result))
        return Streamed(pieces, headers=headers)


def _location(result: StoredResult) -> str:
    if result.location is None:
        raise ResultCorrupt("the ledger knows no place of this result; POST the request with ?refresh=true")
    return result.location


async def _read(controller: Controller, location: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    pieces = controller.results.read(location, start=start, stop=stop)
    try:
        async for piece in pieces:
            yield piece
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()  # closes its file now, not when the garbage collector comes by


async def _bytes_of(controller: Controller, result: StoredResult) -> AsyncGenerator[bytes, None]:
    if result.body is not None:
        yield result.body
        return
    async with aclosing(_read(controller, _location(result), 0, result.size)) as pieces:
        async for piece in pieces:
            yield piece


def _plain(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()
