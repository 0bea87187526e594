"""Errors as HTTP: problem documents of RFC 9457, made from the one error tree in this one place."""

from __future__ import annotations

import logging
import math
import re
import secrets
from typing import Any

import msgspec
from starlette.responses import Response

from dask_fleet.model.errors import BodyTooLarge, FleetError, InternalError, MethodNotAllowed, Unauthorized

_TOKEN = re.compile(rb"fleet_[A-Za-z0-9_-]{43}")

PROBLEM_MEDIA_TYPE = b"application/problem+json"
TYPE_PREFIX = "urn:dask-fleet:problem:"
REQUEST_PREFIX = "urn:dask-fleet:request:"

_RESERVED = frozenset({"type", "title", "status", "detail", "code", "instance"})
_ALLOW = "allow"
_log = logging.getLogger(__name__)
# Extras are JSON-able by contract; should one not be, its text is better than failing while telling of a
# failure.
_encode = msgspec.json.Encoder(enc_hook=str).encode


def problem_document(error: FleetError, *, instance: str | None = None) -> dict[str, Any]:
    """Return the members of the problem document.

    `instance` names this occurrence; it is left out where two answers must not be told apart (a foreign
    job and none).
    """
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    if instance is not None:
        document["instance"] = instance
    document.update({name: value for name, value in error.extra.items() if name not in _RESERVED})
    return document


def blotted(document: bytes) -> bytes:
    """Return a document with tokens blotted out: errors quote what was sent, and get pasted into reports."""
    return _TOKEN.sub(b"[redacted]", document) if b"fleet_" in document else document


def encode_problem(document: dict[str, Any]) -> bytes:
    """Return a problem document, or one with such within, as JSON."""
    return blotted(_encode(document))


def problem_bytes(error: FleetError, *, instance: str | None = None) -> bytes:
    """Return the encoded problem document."""
    return encode_problem(problem_document(error, instance=instance))


def problem_headers(error: FleetError, length: int) -> list[tuple[bytes, bytes]]:
    """Return the raw ASGI headers that go with a problem document of `length` bytes."""
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE),
        (b"content-length", b"%d" % length),
        (b"cache-control", b"no-store"),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b'Bearer realm="dask-fleet"'))
    elif isinstance(error, MethodNotAllowed) and _ALLOW in error.extra:
        headers.append((b"allow", ", ".join(error.extra[_ALLOW]).encode("ascii")))
    elif isinstance(error, BodyTooLarge):
        # The rest of the body is not wanted: without this the server would go on reading it to keep the
        # connection.
        headers.append((b"connection", b"close"))
    return headers


def problem_response(error: FleetError, *, instance: str | None = None) -> Response:
    """Return the answer that tells `error`."""
    body = problem_bytes(error, instance=instance)
    response = Response(body, status_code=error.status)
    response.raw_headers = problem_headers(error, len(body))
    return response


def internal_problem(exc: BaseException, *, path: str) -> tuple[InternalError, str]:
    """Log an exception that nobody foresaw, and return what its caller may see: an error and the
    occurrence's name.

    Nothing of the exception goes out; the request's id joins the caller's story to the log's traceback.
    """
    request_id = secrets.token_hex(8)
    _log.error(
        "unexpected exception while answering a request",
        exc_info=exc,
        extra={"action": "request_failed", "request_id": request_id, "path": path[:200]},
    )
    error = InternalError(
        f"This is a fault of the server. Its log tells more under the request id {request_id}.", request_id=request_id
    )
    return error, REQUEST_PREFIX + request_id


def response_for(exc: Exception, *, path: str) -> Response:
    """Return the answer for whatever a handler raised: a known error as it says, all else as an internal error."""
    if isinstance(exc, FleetError):
        if exc.status >= 500 and not exc.retryable:
            _log.error(
                "request failed",
                exc_info=exc,
                extra={"action": "request_failed", "code": exc.code, "path": path[:200]},
            )
        return problem_response(exc)
    error, instance = internal_problem(exc, path=path)
    return problem_response(error, instance=instance)
