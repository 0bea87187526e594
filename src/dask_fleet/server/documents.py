"""The job document: what the API says of a job. The one place that turns records into JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from dask_fleet.controller.controller import Controller
from dask_fleet.model.jobs import JobRecord, StoredResult
from dask_fleet.model.states import RunState

JSON_MEDIA_TYPE = "application/json"

encode_document = msgspec.json.Encoder().encode
"""Encode a document; `msgspec.Raw` members are put in as they are."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL = msgspec.Raw(b"null")


def rfc3339(at_us: int | None) -> str | None:
    """Return a UTC time as ``2026-01-31T12:00:00.000000Z`` (RFC 3339), of microseconds since 1970."""
    if at_us is None:
        return None
    seconds, micros = divmod(at_us, 1_000_000)
    return f"{_second(seconds)}.{micros:06d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    """Format a whole second; the times of a document mostly share theirs with the documents before it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_rfc3339(text: str) -> int:
    """Return microseconds since 1970 of an RFC 3339 time with its offset.

    Raises
    ------
    ValueError
        If it is malformed, or has no offset (a local time of nobody knows where).
    OverflowError
        If it lies, in UTC, outside the years 1 to 9999: no document could show it.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("the time needs an offset such as 'Z'")
    delta = moment.astimezone(UTC) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def inline_json(result: StoredResult) -> msgspec.Raw | None:
    """Return the JSON rendering of a result if it is at hand (small), without parsing it."""
    if result.media_type == JSON_MEDIA_TYPE:
        return msgspec.Raw(result.body) if result.body is not None else None
    return msgspec.Raw(result.json) if result.json is not None else None


class JobDocument(msgspec.Struct, kw_only=True):
    """Members of the document, in the order in which they are shown."""

    job_id: str
    status: str
    service: str
    endpoint: str
    version: str
    params: msgspec.Raw
    user: str
    tags: tuple[str, ...]
    priority: int
    deadline: str | None
    run: int
    attempt: int
    reason: str
    created_at: str | None
    opened_at: str | None
    started_at: str | None
    finished_at: str | None
    result_expires_at: str | None
    waiting_for: str | None
    cancel_requested_by: str | None
    progress: dict[str, Any] | None
    error: Any
    result: msgspec.Raw | None
    result_media_type: str | None
    result_size: int | None
    links: dict[str, str]


def job_document(controller: Controller, job: JobRecord, *, result: StoredResult | None = None) -> JobDocument:
    """Return what the API says of `job`; with `result` (of its current run, or of an earlier one during a refresh), its
    media type, size and, where it is small, its JSON rendering.
    """
    link = f"/v1/jobs/{job.job_id}"
    progress = controller.progress_of(job.seq) if job.state is RunState.RUNNING else None
    return JobDocument(
        job_id=job.job_id,
        status=job.state.value,
        service=job.service,
        endpoint=job.endpoint,
        version=job.version,
        params=msgspec.Raw(job.params or b"{}"),
        user=job.user,
        tags=job.tags,
        priority=job.priority,
        deadline=rfc3339(job.deadline_us),
        run=job.run,
        attempt=job.attempt,
        reason=job.reason.value,
        created_at=rfc3339(job.created_us),
        opened_at=rfc3339(job.opened_us),
        started_at=rfc3339(job.started_us),
        finished_at=rfc3339(job.finished_us),
        result_expires_at=rfc3339(job.result_expires_us),
        waiting_for=controller.waiting_for(job) if job.state is RunState.QUEUED else None,
        cancel_requested_by=job.cancel_requested_by,
        progress={"done": progress.done, "total": progress.total, "text": progress.text} if progress else None,
        error=job.failure,
        result=inline_json(result) if result is not None else None,
        result_media_type=result.media_type if result is not None else None,
        result_size=result.size if result is not None else None,
        links={
            "self": link,
            "result": f"{link}/result",
            "events": f"{link}/events",
            "attempts": f"{link}/attempts",
            "logs": f"{link}/logs",
        },
    )
