"""The schemas and parameters of the OpenAPI document that are the same for every service."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.failure import Cause
from dask_fleet.model.jobs import MAX_PRIORITY, MIN_PRIORITY
from dask_fleet.model.states import AttemptState, EventKind, OpenReason, RunState
from dask_fleet.server.auth import Scope
from dask_fleet.server.json_schemas import TAGGED_FLOAT
from dask_fleet.server.openapi_logs import LOGS_SCHEMA
from dask_fleet.server.openapi_parts import JOB_ID, TIME, header_parameter, object_of, or_null, query_parameter, ref
from dask_fleet.server.query import MAX_WAIT_S

_FAILURE = object_of(
    {
        "cause": {"enum": list(Cause)},
        "message": {"type": "string"},
        "type": {"type": "string", "description": "Name of the exception's class."},
        "traceback": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
        "signal": {
            "type": "string",
            "description": "With `worker_died`, and `memory_limit` where it was the kernel: what ended the worker process.",
            "examples": ["SIGSEGV"],
        },
        "exit_code": {"type": "integer", "description": "With `worker_died`: what it left with, where it was no signal."},
        "peak_bytes": {"type": "integer", "description": "With `memory_limit`: the most memory that was seen."},
    },
    optional=("type", "traceback", "errors", "signal", "exit_code", "peak_bytes"),
)

_COUNT = {"type": "integer", "minimum": 0}


def _counts(*names: str) -> dict[str, Any]:
    return object_of(dict.fromkeys(names, _COUNT))


_EDGE = {
    **object_of(
        {
            "connections": {**_COUNT, "description": "Open now, TLS handshakes among them."},
            "connections_total": _COUNT,
            "connections_refused_total": {
                **_counts("peer", "server"),
                "description": "By the limit they met: that of one address, or that of all.",
            },
            "connections_timed_out_total": {
                **_counts("head", "body", "idle", "stall"),
                "description": "Closed by a deadline; `idle` is how an unused connection ends.",
            },
            "requests_refused_total": {
                "type": "object",
                "additionalProperties": _COUNT,
                "description": "What was no HTTP or over a limit of it, by the problem's code.",
            },
            "tls_handshakes_failed_total": _counts("timeout", "protocol", "disconnect"),
            "large_body_bytes": {**_COUNT, "description": "Of request bodies over 64 KiB, in memory now."},
            "large_bodies_waiting": {**_COUNT, "description": "Of these bodies, those that wait for room."},
            "large_bodies_refused_total": {
                **_counts("slow", "share", "patience"),
                "description": "Sent away for others: too slow, of a user with more than half; or no room in 10 s.",
            },
            "tokens_refused_total": _counts("missing", "unknown", "expired", "revoked"),
        }
    ),
    "description": "For administrators: what the server's edge sees. Names in `_total` count since its start.",
}

COMMON_SCHEMAS: dict[str, Any] = {
    "Edge": _EDGE,
    "Job": object_of(
        {
            "job_id": JOB_ID,
            "status": {"enum": list(RunState)},
            "service": {"type": "string"},
            "endpoint": {"type": "string"},
            "version": {"type": "string"},
            "params": {"type": "object", "description": "The parameters with all defaults filled in."},
            "user": {"type": "string", "description": "Who asked first."},
            "tags": {"type": "array", "items": {"type": "string"}},
            "priority": {"type": "integer"},
            "deadline": or_null(TIME),
            "run": {"type": "integer", "description": "What a first POST, a retry or a refresh opens."},
            "attempt": {"type": "integer", "description": "The latest execution; 0 before the first."},
            "reason": {"enum": list(OpenReason)},
            "created_at": TIME,
            "opened_at": TIME,
            "started_at": or_null(TIME),
            "finished_at": or_null(TIME),
            "result_expires_at": or_null(TIME),
            "waiting_for": {"type": ["string", "null"], "description": "While queued: why it does not run yet."},
            "cancel_requested_by": {"type": ["string", "null"]},
            "progress": or_null(
                object_of({"done": {"type": "number"}, "total": {"type": "number"}, "text": {"type": "string"}})
            ),
            "error": or_null(ref("schemas", "Failure")),
            "result": {"description": "The result as JSON, if there is one and it is small; else fetch `links.result`."},
            "result_media_type": {"type": ["string", "null"]},
            "result_size": {"type": ["integer", "null"], "description": "Bytes of the stored form."},
            "links": object_of({name: {"type": "string"} for name in ("self", "result", "events", "attempts", "logs")}),
        }
    ),
    "Batch": object_of(
        {
            "accepted": {"type": "integer"},
            "refused": {"type": "integer"},
            "items": {
                "type": "array",
                "items": {"anyOf": [ref("schemas", "BatchAccepted"), ref("schemas", "BatchRefused")]},
            },
        }
    ),
    "BatchAccepted": object_of(
        {
            "index": {"type": "integer", "description": "Of the set in the request, from 0."},
            "job_id": JOB_ID,
            "status": {"enum": list(RunState)},
            "location": {"type": "string", "description": "The job's page."},
        }
    ),
    "BatchRefused": object_of({"index": {"type": "integer"}, "error": ref("schemas", "Problem")}),
    "Failure": _FAILURE,
    "Attempt": object_of(
        {
            "run": {"type": "integer"},
            "attempt": {"type": "integer"},
            "status": {"enum": list(AttemptState)},
            "agent": {"type": "string"},
            "worker": {"type": "string"},
            "started_at": TIME,
            "finished_at": or_null(TIME),
            "error": or_null(ref("schemas", "Failure")),
        }
    ),
    "Token": object_of(
        {
            "token_id": {"type": "string"},
            "user": {"type": "string"},
            "tenant": {"type": "string"},
            "scopes": {"type": "array", "items": {"enum": list(Scope)}},
            "created_at": TIME,
            "expires_at": or_null(TIME),
            "revoked_at": or_null(TIME),
        }
    ),
    "Logs": LOGS_SCHEMA,
    "Event": {
        **object_of({name: {"type": "string"} for name in ("event", "id", "data")}, optional=("event", "id", "data")),
        "description": "One server-sent event: its kind, its id (not of `progress` and `log`), and its data as JSON text.",
    },
    "Story": object_of(
        {
            "job_id": JOB_ID,
            "status": {"enum": list(RunState)},
            "events": {
                "type": "array",
                "items": object_of(
                    {
                        "event_id": {"type": "integer"},
                        "run": {"type": "integer"},
                        "attempt": {"type": "integer"},
                        "kind": {"enum": list(EventKind)},
                        "at": TIME,
                        "data": {"type": "object"},
                        "text": {"type": "string", "description": "The event in a sentence."},
                    }
                ),
            },
            "standing": {"type": "string", "description": "How the job stands now, in a sentence."},
            "cure": {"type": ["string", "null"], "description": "If it failed: what to do about it."},
        }
    ),
    "Problem": {
        **object_of(
            {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "code": {"type": "string", "description": "Stable: what a program tests."},
                "instance": {"type": "string"},
                "errors": {"type": "array", "description": "Of `invalid_parameters`: one for each field."},
                "failure": or_null(ref("schemas", "Failure")),
            },
            optional=("instance", "errors", "failure"),
        ),
        "description": "RFC 9457.",
    },
    TAGGED_FLOAT: {
        "type": "object",
        "properties": {"$float": {"enum": ["NaN", "Infinity", "-Infinity"]}},
        "required": ["$float"],
        "additionalProperties": False,
        "description": "A float that JSON has no number for.",
    },
}

WAIT_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S}

COMMON_PARAMETERS: dict[str, Any] = {
    "JobId": {"name": "job_id", "in": "path", "required": True, "schema": JOB_ID},
    "Wait": query_parameter("wait", WAIT_SCHEMA, "Hold the answer until the job ends, at most so many seconds."),
    "Refresh": query_parameter(
        "refresh", {"enum": ["true", "false"]}, "Compute again though a result is there; it is served meanwhile."
    ),
    "Prefer": header_parameter(
        "Prefer", {"type": "string", "examples": ["wait=10"]}, f"`wait=N` (RFC 7240), at most {MAX_WAIT_S} s."
    ),
    "FleetPriority": header_parameter(
        "Fleet-Priority",
        {"type": "integer", "minimum": MIN_PRIORITY, "maximum": MAX_PRIORITY},
        "Higher runs earlier.",
    ),
    "FleetDeadline": header_parameter(
        "Fleet-Deadline",
        {"type": "string", "examples": ["60", "2030-01-31T12:00:00Z"]},
        "Do not begin after: seconds from now, or an RFC 3339 time.",
    ),
    "FleetTags": header_parameter(
        "Fleet-Tags", {"type": "string", "examples": ["nightly,report"]}, "Separated by commas; to find jobs by."
    ),
    "IdempotencyKey": header_parameter(
        "Idempotency-Key", {"type": "string"}, "Makes repeating a call of a non-pure endpoint safe."
    ),
}
