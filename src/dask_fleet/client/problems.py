"""From an answer that is an error to the same exception the server had."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dask_fleet.model.errors import (
    BadRequest,
    CapacityError,
    FleetError,
    InternalError,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    NotFound,
    RequestError,
    Unauthorized,
    error_classes,
)

_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "instance"})
_BY_STATUS: dict[int, type[FleetError]] = {400: BadRequest, 401: Unauthorized, 404: NotFound}
# Where several classes share a code, the tree names the most general; a caller wants the one that says most.
_SPECIFIC: dict[str, type[FleetError]] = {"job_failed": JobFailed, "bad_request": BadRequest}


def error_from(status: int, headers: Mapping[str, str], body: bytes) -> FleetError:
    """Return the exception that an error answer stands for; an answer that is not ours (a proxy's) is told by its status."""
    document: dict[str, Any] = {}
    try:
        loaded = json.loads(body)
        if isinstance(loaded, dict):
            document = loaded
    except ValueError:
        pass
    code = document.get("code")
    known = {**error_classes(), **_SPECIFIC}
    cls = known.get(code) if isinstance(code, str) else None
    if cls is None:
        cls = _BY_STATUS.get(status) or _class_by_range(status)
    detail = str(document.get("detail") or document.get("title") or "")
    if not detail:
        detail = f"the server answered {status}: {body[:200].decode('utf-8', 'replace').strip() or 'nothing more'}"
    if cls is Unauthorized:
        detail = detail.rstrip(".") + ". Set FLEET_TOKEN (or FLEET_TOKEN_FILE) to the token in the server's DATA_DIR/token."
    extra = {key: value for key, value in document.items() if key not in _MEMBERS and key != "retry_after_s"}
    error = cls(detail, retry_after_s=retry_after(headers), **extra)
    if isinstance(error, JobError):
        add_traceback(error)
    return error


def _class_by_range(status: int) -> type[FleetError]:
    if status in {429, 502, 503, 504}:
        return CapacityError
    return RequestError if 400 <= status < 500 else InternalError


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a ``Retry-After`` header (a number or a date), if there is a sound one."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def job_error(document: Mapping[str, Any]) -> JobError:
    """Return the exception for a job document whose run ended without a result."""
    failure = document.get("error")
    name = f"{document.get('service')}.{document.get('endpoint')}"
    job_id = document.get("job_id")
    cls: type[JobError]
    if document["status"] == "cancelled":
        cls, detail = JobCancelled, f"{name} was cancelled"
    elif document["status"] == "expired":
        cls, detail = JobExpired, f"{name} expired: its deadline passed before it ran"
    else:
        cls, detail = JobFailed, f"{name} failed"
        if failure:
            kind = f"{failure['type']}: " if failure.get("type") else ""
            detail += f" ({failure.get('cause')}): {kind}{failure.get('message', '')}"
    error = cls(detail, failure=failure, job_id=job_id)
    add_traceback(error)
    return error


def add_traceback(error: JobError) -> None:
    """Show the function's own traceback under the exception's, as a note (PEP 678)."""
    failure = error.extra.get("failure")
    if isinstance(failure, dict) and failure.get("traceback"):
        error.add_note(f"\nIn the worker process:\n{failure['traceback']}")
