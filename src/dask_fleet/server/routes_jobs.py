"""``/v1/jobs``: look at jobs, list them, cancel and retry them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import BadRequest
from dask_fleet.model.jobs import AttemptRecord, JobFilter, JobRecord
from dask_fleet.model.states import RunState
from dask_fleet.server.auth import Principal, Scope, principal_of, require
from dask_fleet.server.cursors import Cursors
from dask_fleet.server.documents import encode_document, job_document, parse_rfc3339, rfc3339
from dask_fleet.server.methods import Methods
from dask_fleet.server.query import query_of, wait_s

DEFAULT_PAGE = 50
MAX_PAGE = 500
POLL_AFTER_S = 1
"""What ``Retry-After`` says of an unfinished job; ``?wait=`` is better."""

_FILTERS = frozenset({"status", "service", "endpoint", "user", "tag", "created_after", "created_before", "limit", "cursor"})


def routes(controller: Controller) -> list[BaseRoute]:
    """Return the routes of jobs."""
    jobs = _Jobs(controller)
    return [
        Route("/v1/jobs", Methods(GET=jobs.list)),
        Route("/v1/jobs/{job_id}:retry", Methods(POST=jobs.retry)),
        Route("/v1/jobs/{job_id}/attempts", Methods(GET=jobs.attempts)),
        Route("/v1/jobs/{job_id}", Methods(GET=jobs.show, DELETE=jobs.cancel)),
    ]


def json_response(document: Any, *, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a document of the API; never cached."""
    return Response(
        encode_document(document),
        status_code=status_code,
        media_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def unfinished_headers(job: JobRecord) -> dict[str, str]:
    """Return what an answer about an unfinished job tells: where to ask again, and when."""
    return {"Location": f"/v1/jobs/{job.job_id}", "Retry-After": str(POLL_AFTER_S)}


def parse_filter(query: dict[str, str], principal: Principal) -> JobFilter:
    """Return what a listing asks for; always within the caller's own tenant.

    Raises
    ------
    BadRequest
        Naming the query parameter that is malformed.
    """
    state: RunState | None = None
    if (status := query.get("status")) is not None:
        try:
            state = RunState(status)
        except ValueError:
            raise BadRequest(f"the query parameter status must be one of {', '.join(RunState)}") from None
    for name in ("service", "endpoint", "user", "tag"):
        if query.get(name) == "":
            raise BadRequest(f"the query parameter {name} is empty; leave it out to list all")
    if "endpoint" in query and "service" not in query:
        raise BadRequest("the query parameter endpoint needs service beside it: names are unique within a service only")
    return JobFilter(
        tenant=principal.tenant,
        state=state,
        service=query.get("service"),
        endpoint=query.get("endpoint"),
        user=query.get("user"),
        tag=query.get("tag"),
        created_after_us=_time(query, "created_after"),
        created_before_us=_time(query, "created_before"),
    )


def parse_limit(query: dict[str, str]) -> int:
    """Return the size of a page.

    Raises
    ------
    BadRequest
        If it is not a whole number from 1 to `MAX_PAGE`.
    """
    text = query.get("limit", str(DEFAULT_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_PAGE):
        raise BadRequest(f"the query parameter limit must be a whole number from 1 to {MAX_PAGE}")
    return int(text)


def attempt_document(attempt: AttemptRecord) -> dict[str, Any]:
    """Return what the API says of one execution."""
    return {
        "run": attempt.run,
        "attempt": attempt.attempt,
        "status": attempt.state.value,
        "agent": attempt.agent,
        "worker": attempt.worker,
        "started_at": rfc3339(attempt.started_us),
        "finished_at": rfc3339(attempt.finished_us),
        "error": attempt.failure,
    }


class _Jobs:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._cursors: Cursors | None = None

    async def show(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        seconds = wait_s(query_of(request, {"wait"}))
        job = await self._controller.find(request.path_params["job_id"], principal.tenant)
        if seconds:
            job = await self._controller.wait(job, seconds)
        result = None
        if job.state is RunState.SUCCEEDED or not job.state.is_terminal:
            result = await self._controller.result(job)
        return json_response(job_document(self._controller, job, result=result))

    async def cancel(self, request: Request) -> Response:
        principal, job = await self._changeable(request)
        job = await self._controller.cancel(job, principal.user)
        # A running job ends when its function lets go: 202 says that the wish is recorded.
        return json_response(job_document(self._controller, job), status_code=200 if job.state.is_terminal else 202)

    async def retry(self, request: Request) -> Response:
        principal, job = await self._changeable(request)
        job = await self._controller.intake.retry(job, principal.user)
        return json_response(
            job_document(self._controller, job),
            status_code=200 if job.state.is_terminal else 202,
            headers=unfinished_headers(job),
        )

    async def attempts(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query_of(request, ())
        job = await self._controller.find(request.path_params["job_id"], principal.tenant)
        found = await self._controller.ledger.attempts(job.seq)
        return json_response({"attempts": [attempt_document(attempt) for attempt in found]})

    async def list(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query = query_of(request, _FILTERS)
        where = parse_filter(query, principal)
        limit = parse_limit(query)
        if self._cursors is None:
            self._cursors = Cursors(self._controller.ledger.ledger_id)
        before = self._cursors.read(query["cursor"], where) if "cursor" in query else None
        page = await self._controller.ledger.list_jobs(where, before_seq=before, limit=limit)
        following = page.next_before_seq
        return json_response(
            {
                "jobs": [msgspec.Raw(encode_document(job_document(self._controller, job))) for job in page.jobs],
                "next_cursor": self._cursors.make(following, where) if following is not None else None,
            }
        )

    async def _changeable(self, request: Request) -> tuple[Principal, JobRecord]:
        principal = principal_of(request)
        require(principal, Scope.SUBMIT)
        query_of(request, ())
        return principal, await self._controller.find(request.path_params["job_id"], principal.tenant)


def _time(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        # A '+' of an offset that was not escaped arrives as a blank: no RFC 3339 time has one there.
        return parse_rfc3339(text.replace(" ", "+") if len(text) > 19 else text)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"the query parameter {name} must be an RFC 3339 time with its offset, such as 2026-01-31T12:00:00Z"
        ) from None
