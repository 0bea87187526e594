"""``/v1/jobs/{id}/events``: a job's story as server-sent events, resumed exactly, with progress in between."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import BadRequest, CapacityError, NotAcceptable, NotFound
from dask_fleet.model.jobs import EventRecord, JobRecord
from dask_fleet.model.states import EventKind
from dask_fleet.model.story import Teller
from dask_fleet.protocol.frames import Progress
from dask_fleet.server.auth import Scope, principal_of, require
from dask_fleet.server.log_tail import LogTail, parse_places
from dask_fleet.server.methods import Methods
from dask_fleet.server.negotiation import choose
from dask_fleet.server.query import query_of
from dask_fleet.server.routes_jobs import json_response
from dask_fleet.server.story_view import event_document, story_document, story_text, teller_of
from dask_fleet.server.streaming import Streamed

PING_S = 15.0
"""A comment so often keeps proxies from closing a silent stream, and tells us that a client has gone."""
MAX_STREAMS = 1_000
RECONNECT_MS = 2_000

_TERMINAL_KINDS = frozenset({EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED, EventKind.EXPIRED})
_KINDS_OF_ENDS = _TERMINAL_KINDS | {EventKind.RETRYING}
_FORMS = ["text/event-stream", "text/plain", "application/json"]
_EVENT_ID = re.compile(r"[0-9]{1,18}\Z")
_PAGE = 1_000
_PING = b": ping\n\n"
_FAREWELL = b": the server is stopping; come back with Last-Event-ID\nretry: %d\n\n" % RECONNECT_MS
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
}


def routes(controller: Controller) -> list[BaseRoute]:
    """Return the route of event streams."""
    return [Route("/v1/jobs/{job_id}/events", Methods(GET=_Events(controller).stream))]


def event_bytes(event: EventRecord, teller: Teller) -> bytes:
    """Return an event of the ledger as the stream has it; `teller` has told all that come before."""
    data = event_document(teller.line(event))
    return b"event: %s\nid: %d\ndata: %s\n\n" % (event.kind.encode(), event.event_id, msgspec.json.encode(data))


def progress_bytes(progress: Progress) -> bytes:
    """Return progress as the stream has it: without an id, since nothing of it is kept to resume from."""
    data = {
        "run": progress.run,
        "attempt": progress.attempt,
        "done": progress.done,
        "total": progress.total,
        "text": progress.text,
    }
    return b"event: progress\ndata: %s\n\n" % msgspec.json.encode(data)


def resume_after(query: Mapping[str, str], request: Request) -> int:
    """Return the id of the last event that the caller has seen, 0 if none.

    Raises
    ------
    BadRequest
        If ``Last-Event-ID`` or ``?after=`` is no event id.
    """
    # The header is the newer one: a browser repeats the URL it was given, and adds the header when it comes back.
    text = request.headers.get("last-event-id") or query.get("after") or "0"
    if not _EVENT_ID.match(text):
        raise BadRequest("Last-Event-ID (or ?after=) must be the id of an event: a whole number")
    return int(text)


class _Events:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._open = 0

    async def stream(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query = query_of(request, {"after", "logs", "logs_after"})
        after = resume_after(query, request)
        if query.get("logs", "false") not in {"true", "false"}:
            raise BadRequest("the query parameter logs must be true or false")
        told = parse_places(query.get("logs_after", ""))
        job = await self._controller.find(request.path_params["job_id"], principal.tenant)
        # Whoever names no form has always had the stream, and so have browsers, which name it.
        form = choose(request.headers.get("accept"), _FORMS)
        if form is None:
            raise NotAcceptable("events come as text/event-stream, text/plain or application/json", available=_FORMS)
        if form == "text/plain":
            return PlainTextResponse(await story_text(self._controller, job, after=after), headers=_HEADERS)
        if form == "application/json":
            return json_response(await story_document(self._controller, job, after=after))
        if after and job.state.is_terminal and not await self._controller.ledger.events(job.seq, after=after, limit=1):
            # All has been told. 204 is what makes a browser's EventSource stop coming back (HTML, section 9.2).
            return Response(status_code=204, headers=_HEADERS)
        if self._open >= MAX_STREAMS:
            raise CapacityError(f"{MAX_STREAMS} event streams are open; poll the job with ?wait= instead", retry_after_s=5)
        tail = LogTail(self._controller.logs, job.seq, told) if query.get("logs") == "true" else None
        return Streamed(self._pieces(job, after, tail), headers=_HEADERS, media_type="text/event-stream")

    async def _pieces(self, job: JobRecord, after: int, tail: LogTail | None) -> AsyncGenerator[bytes, None]:
        self._open += 1
        try:
            with self._controller.subscribe(job.seq, logs=tail is not None) as subscription:
                yield b"retry: %d\n\n" % RECONNECT_MS
                teller = await teller_of(self._controller, job, until=after)
                last_kind: EventKind | None = None
                shown: Progress | None = None
                while True:
                    try:
                        # Read before the events: what it says is in them by then, so its end is the story's end.
                        job = await self._controller.find(job.job_id, job.tenant)
                    except NotFound:
                        return
                    while page := await self._told_by(job, after):
                        if any(event.kind in _KINDS_OF_ENDS for event in page):
                            teller.learn(job, await self._controller.ledger.attempts(job.seq))
                        for event in page:
                            after, last_kind = event.event_id, event.kind
                            if tail is not None and last_kind in _TERMINAL_KINDS:
                                async with aclosing(tail.news(job)) as pieces:
                                    async for piece in pieces:
                                        yield piece
                            yield event_bytes(event, teller)
                    if tail is not None:
                        async with aclosing(tail.news(job)) as pieces:
                            async for piece in pieces:
                                yield piece
                    if job.state.is_terminal and (last_kind is None or last_kind in _TERMINAL_KINDS):
                        return
                    if self._controller.closing:
                        yield _FAREWELL
                        return
                    progress = self._controller.progress_of(job.seq)
                    if progress is not None and progress is not shown:
                        shown = progress
                        yield progress_bytes(progress)
                    if not await subscription.next(PING_S):
                        yield _PING
        finally:
            self._open -= 1

    async def _told_by(self, job: JobRecord, after: int) -> list[EventRecord]:
        """Return the next events, up to the end of a run that `job` does not know of yet.

        The ledger has an end a moment before the controller. Told in that moment, it would overtake the last of the logs;
        the controller's word of it wakes the stream.
        """
        page = await self._controller.ledger.events(job.seq, after=after, limit=_PAGE)
        if not job.state.is_terminal:
            for place, event in enumerate(page):
                if event.kind in _TERMINAL_KINDS and event.run >= job.run:
                    return page[:place]
        return page
