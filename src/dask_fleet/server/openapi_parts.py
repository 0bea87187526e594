"""The parts of the OpenAPI document that are the same for every service: schemas, parameters, answers, fixed pages."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.errors import error_classes
from dask_fleet.model.failure import Cause
from dask_fleet.model.ids import JOB_ID_PATTERN
from dask_fleet.model.jobs import MAX_PRIORITY, MIN_PRIORITY
from dask_fleet.model.states import AttemptState, EventKind, OpenReason, RunState
from dask_fleet.server.auth import Scope
from dask_fleet.server.json_schemas import TAGGED_FLOAT
from dask_fleet.server.openapi_logs import FOLLOW_PARAMETERS, LOGS_SCHEMA, logs_path
from dask_fleet.server.query import MAX_WAIT_S
from dask_fleet.server.routes_tokens import MAX_VALID_S, NAME_PATTERN

_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
_JOB_ID: dict[str, Any] = {"type": "string", "pattern": "^" + JOB_ID_PATTERN.pattern.removesuffix(r"\Z") + "$"}
_PROBLEM = "application/problem+json"


def ref(kind: str, name: str) -> dict[str, Any]:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def json_content(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema}}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that also takes null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _titles() -> dict[int, str]:
    titles: dict[int, list[str]] = {}
    for cls in error_classes().values():
        titles.setdefault(cls.status, []).append(f"{cls.title} (`{cls.code}`)")
    return {status: "; ".join(sorted(found)) for status, found in titles.items()}


_TITLES = _titles()


def problems(*statuses: int) -> dict[str, Any]:
    """Return the answers with a problem document for these statuses."""
    return {
        str(status): {
            "description": _TITLES.get(status, "Error"),
            "content": {_PROBLEM: {"schema": ref("schemas", "Problem")}},
            **(_retry_after() if status in {429, 503, 507} else {}),
        }
        for status in statuses
    }


def job_responses(result: dict[str, Any], *, states: tuple[int, ...]) -> dict[str, Any]:
    """Return the answers that carry a job document whose inline result, if any, fits the schema `result`."""
    schema: dict[str, Any] = ref("schemas", "Job")
    if result:
        schema = {"allOf": [schema, {"type": "object", "properties": {"result": or_null(result)}}]}
    texts = {200: "The job, with its result if it is there and small.", 202: "The job; it is not finished yet."}
    location = {"description": "The job's page.", "schema": {"type": "string"}}
    return {
        str(status): {
            "description": texts[status],
            "content": json_content(schema),
            **({"headers": {"Location": location, **_retry_after()["headers"]}} if status == 202 else {}),
        }
        for status in states
    }


def _retry_after() -> dict[str, Any]:
    return {
        "headers": {"Retry-After": {"description": "Seconds until asking again makes sense.", "schema": {"type": "integer"}}}
    }


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _header(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": text, "schema": schema}


_FAILURE = _object(
    {
        "cause": {"enum": list(Cause)},
        "message": {"type": "string"},
        "type": {"type": "string", "description": "Name of the exception's class."},
        "traceback": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
    optional=("type", "traceback", "errors"),
)

COMMON_SCHEMAS: dict[str, Any] = {
    "Job": _object(
        {
            "job_id": _JOB_ID,
            "status": {"enum": list(RunState)},
            "service": {"type": "string"},
            "endpoint": {"type": "string"},
            "version": {"type": "string"},
            "params": {"type": "object", "description": "The parameters with all defaults filled in."},
            "user": {"type": "string", "description": "Who asked first."},
            "tags": {"type": "array", "items": {"type": "string"}},
            "priority": {"type": "integer"},
            "deadline": or_null(_TIME),
            "run": {"type": "integer", "description": "What a first POST, a retry or a refresh opens."},
            "attempt": {"type": "integer", "description": "The latest execution; 0 before the first."},
            "reason": {"enum": list(OpenReason)},
            "created_at": _TIME,
            "opened_at": _TIME,
            "started_at": or_null(_TIME),
            "finished_at": or_null(_TIME),
            "result_expires_at": or_null(_TIME),
            "waiting_for": {"type": ["string", "null"], "description": "While queued: why it does not run yet."},
            "cancel_requested_by": {"type": ["string", "null"]},
            "progress": or_null(
                _object({"done": {"type": "number"}, "total": {"type": "number"}, "text": {"type": "string"}})
            ),
            "error": or_null(ref("schemas", "Failure")),
            "result": {"description": "The result as JSON, if there is one and it is small; else fetch `links.result`."},
            "result_media_type": {"type": ["string", "null"]},
            "result_size": {"type": ["integer", "null"], "description": "Bytes of the stored form."},
            "links": _object({name: {"type": "string"} for name in ("self", "result", "events", "attempts", "logs")}),
        }
    ),
    "Batch": _object(
        {
            "accepted": {"type": "integer"},
            "refused": {"type": "integer"},
            "items": {
                "type": "array",
                "items": {"anyOf": [ref("schemas", "BatchAccepted"), ref("schemas", "BatchRefused")]},
            },
        }
    ),
    "BatchAccepted": _object(
        {
            "index": {"type": "integer", "description": "Of the set in the request, from 0."},
            "job_id": _JOB_ID,
            "status": {"enum": list(RunState)},
            "location": {"type": "string", "description": "The job's page."},
        }
    ),
    "BatchRefused": _object({"index": {"type": "integer"}, "error": ref("schemas", "Problem")}),
    "Failure": _FAILURE,
    "Attempt": _object(
        {
            "run": {"type": "integer"},
            "attempt": {"type": "integer"},
            "status": {"enum": list(AttemptState)},
            "agent": {"type": "string"},
            "worker": {"type": "string"},
            "started_at": _TIME,
            "finished_at": or_null(_TIME),
            "error": or_null(ref("schemas", "Failure")),
        }
    ),
    "Token": _object(
        {
            "token_id": {"type": "string"},
            "user": {"type": "string"},
            "tenant": {"type": "string"},
            "scopes": {"type": "array", "items": {"enum": list(Scope)}},
            "created_at": _TIME,
            "expires_at": or_null(_TIME),
            "revoked_at": or_null(_TIME),
        }
    ),
    "Logs": LOGS_SCHEMA,
    "Event": {
        **_object({name: {"type": "string"} for name in ("event", "id", "data")}, optional=("event", "id", "data")),
        "description": "One server-sent event: its kind, its id (not of `progress` and `log`), and its data as JSON text.",
    },
    "Story": _object(
        {
            "job_id": _JOB_ID,
            "status": {"enum": list(RunState)},
            "events": {
                "type": "array",
                "items": _object(
                    {
                        "event_id": {"type": "integer"},
                        "run": {"type": "integer"},
                        "attempt": {"type": "integer"},
                        "kind": {"enum": list(EventKind)},
                        "at": _TIME,
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
        **_object(
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

_WAIT_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S}

COMMON_PARAMETERS: dict[str, Any] = {
    "JobId": {"name": "job_id", "in": "path", "required": True, "schema": _JOB_ID},
    "Wait": _query("wait", _WAIT_SCHEMA, "Hold the answer until the job ends, at most so many seconds."),
    "Refresh": _query(
        "refresh", {"enum": ["true", "false"]}, "Compute again though a result is there; it is served meanwhile."
    ),
    "Prefer": _header(
        "Prefer", {"type": "string", "examples": ["wait=10"]}, f"`wait=N` (RFC 7240), at most {MAX_WAIT_S} s."
    ),
    "FleetPriority": _header(
        "Fleet-Priority",
        {"type": "integer", "minimum": MIN_PRIORITY, "maximum": MAX_PRIORITY},
        "Higher runs earlier.",
    ),
    "FleetDeadline": _header(
        "Fleet-Deadline",
        {"type": "string", "examples": ["60", "2030-01-31T12:00:00Z"]},
        "Do not begin after: seconds from now, or an RFC 3339 time.",
    ),
    "FleetTags": _header(
        "Fleet-Tags", {"type": "string", "examples": ["nightly,report"]}, "Separated by commas; to find jobs by."
    ),
    "IdempotencyKey": _header("Idempotency-Key", {"type": "string"}, "Makes repeating a call of a non-pure endpoint safe."),
}


def _page(
    method: str, *, tag: str, summary: str, responses: dict[str, Any], parameters: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    return {
        method: {
            "tags": [tag],
            "summary": summary,
            **({"parameters": list(parameters)} if parameters else {}),
            "responses": responses,
        }
    }


def _ok(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"200": {"description": text, "content": json_content(schema)}}


_ANY_FORM = {
    "application/json": {},
    "*/*": {"schema": {"description": "The stored form: Arrow stream, NPY, PNG, text, bytes."}},
}
_JOB_PARAMETER = ref("parameters", "JobId")
_WAIT_PARAMETER = ref("parameters", "Wait")
_USUAL = problems(400, 401, 403, 404, 421, 500, 503, 507)
_FREE_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 200}

FIXED_PATHS: dict[str, Any] = {
    "/v1/jobs": _page(
        "get",
        tag="jobs",
        summary="List jobs, newest first",
        parameters=(
            _query("status", {"enum": list(RunState)}, "State of the current run."),
            _query("service", _FREE_TEXT, "Name of the service."),
            _query("endpoint", _FREE_TEXT, "Name of the endpoint; needs `service`."),
            _query("user", _FREE_TEXT, "Who asked first."),
            _query("tag", _FREE_TEXT, "One tag."),
            _query("created_after", _TIME, "Accepted at or after."),
            _query("created_before", _TIME, "Accepted before."),
            _query("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "Most jobs on a page."),
            _query("cursor", {"type": "string"}, "`next_cursor` of the page before, with the same filters."),
        ),
        responses={
            **_ok(
                _object(
                    {
                        "jobs": {"type": "array", "items": ref("schemas", "Job")},
                        "next_cursor": {"type": ["string", "null"]},
                    }
                ),
                "A page; it may be short and still have a next one.",
            ),
            **_USUAL,
        },
    ),
    "/v1/jobs/{job_id}": {
        **_page(
            "get",
            tag="jobs",
            summary="Show a job",
            parameters=(_JOB_PARAMETER, _WAIT_PARAMETER),
            responses={**job_responses({}, states=(200,)), **_USUAL},
        ),
        **_page(
            "delete",
            tag="jobs",
            summary="Cancel a job",
            parameters=(_JOB_PARAMETER,),
            responses={**job_responses({}, states=(200, 202)), **_USUAL},
        ),
    },
    "/v1/jobs/{job_id}:retry": _page(
        "post",
        tag="jobs",
        summary="Run a failed, cancelled or expired job again",
        parameters=(_JOB_PARAMETER,),
        responses={**job_responses({}, states=(200, 202)), **problems(409), **_USUAL},
    ),
    "/v1/jobs/{job_id}/result": _page(
        "get",
        tag="jobs",
        summary="Fetch a result, in the form that Accept asks for",
        parameters=(_JOB_PARAMETER, _WAIT_PARAMETER),
        responses={
            "200": {"description": "The result.", "content": _ANY_FORM},
            "206": {"description": "A part of the stored form.", "content": _ANY_FORM},
            "304": {"description": "The caller has it already."},
            **job_responses({}, states=(202,)),
            **problems(406, 409, 410, 412, 416),
            **_USUAL,
        },
    ),
    "/v1/jobs/{job_id}/events": _page(
        "get",
        tag="jobs",
        summary="Follow a job by server-sent events, or have its story told",
        parameters=(
            _JOB_PARAMETER,
            _header("Last-Event-ID", {"type": "string", "pattern": "^[0-9]{1,18}$"}, "Go on after this event."),
            _query(
                "after", {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}, "The same, where a header cannot be set."
            ),
            *FOLLOW_PARAMETERS,
        ),
        responses={
            "200": {
                "description": "As a stream: the events of the ledger with their ids, `progress` and `log` without;"
                " ends with the job. As text or JSON: the story so far.",
                "content": {
                    "text/event-stream": {"schema": ref("schemas", "Event")},
                    "text/plain": {"schema": {"type": "string"}},
                    **json_content(ref("schemas", "Story")),
                },
            },
            "204": {"description": "All has been told."},
            **problems(406),
            **_USUAL,
        },
    ),
    "/v1/jobs/{job_id}/logs": logs_path(_JOB_PARAMETER, {**problems(406, 416), **_USUAL}),
    "/v1/jobs/{job_id}/attempts": _page(
        "get",
        tag="jobs",
        summary="List the executions of a job",
        parameters=(_JOB_PARAMETER,),
        responses={
            **_ok(_object({"attempts": {"type": "array", "items": ref("schemas", "Attempt")}}), "Oldest first."),
            **_USUAL,
        },
    ),
    "/v1/services": _page(
        "get",
        tag="server",
        summary="List services and endpoints with their schemas",
        responses={
            **_ok(_object({"services": {"type": "array", "items": {"type": "object"}}}), "What can be called."),
            **problems(400, 401, 403, 421, 500),
        },
    ),
    "/v1/status": _page(
        "get",
        tag="server",
        summary="Show the server's state: queue, agents",
        responses={
            **_ok(
                _object(
                    {
                        "version": {"type": "string"},
                        "queued": {"type": "integer"},
                        "running": {"type": "integer"},
                        "draining": {"type": "boolean"},
                        "stale_outcomes": {"type": "integer"},
                        "paused": {
                            "type": "array",
                            "items": _object(
                                {
                                    "user": {"type": "string"},
                                    "until": {"type": "string", "format": "date-time"},
                                    "why": {"type": "string"},
                                }
                            ),
                        },
                        "agents": {"type": "array", "items": {"type": "object"}},
                    }
                ),
                "As of now.",
            ),
            **problems(400, 401, 403, 421, 500),
        },
    ),
    "/v1/tokens": {
        **_page(
            "get",
            tag="server",
            summary="List tokens: whose they are and what they may do",
            responses={
                **_ok(_object({"tokens": {"type": "array", "items": ref("schemas", "Token")}}), "Oldest first."),
                **problems(400, 401, 403, 421, 500, 503),
            },
        ),
        **_page(
            "post",
            tag="server",
            summary="Make a token; the answer is the only one that shows it",
            responses={
                "201": {
                    "description": "The token, valid at once.",
                    "content": json_content(
                        {
                            "allOf": [
                                ref("schemas", "Token"),
                                _object({"token": {"type": "string", "pattern": "^fleet_[A-Za-z0-9_-]{43}$"}}),
                            ]
                        }
                    ),
                },
                **problems(400, 401, 403, 409, 413, 415, 421, 500, 503),
            },
        ),
    },
    "/v1/tokens/{token_id}": _page(
        "delete",
        tag="server",
        summary="Revoke a token; what it has open ends within seconds",
        parameters=({"name": "token_id", "in": "path", "required": True, "schema": {"type": "string"}},),
        responses={**_ok(ref("schemas", "Token"), "The token, revoked."), **_USUAL},
    ),
    "/v1/signin": _page(
        "post",
        tag="server",
        summary="Make a one-time link that signs a browser in",
        responses={
            "201": {
                "description": "The link, good once.",
                "content": json_content(_object({"url": {"type": "string"}, "valid_s": {"type": "number"}})),
            },
            **problems(400, 401, 403, 421, 500),
        },
    ),
}


def _word(summary: str, responses: dict[str, str]) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    page = _page(
        "get",
        tag="server",
        summary=summary,
        responses={status: {"description": text, "content": content} for status, text in responses.items()},
    )
    page["get"]["security"] = []
    return page


FIXED_PATHS["/v1/tokens"]["post"]["requestBody"] = {
    "required": True,
    "content": json_content(
        {
            **_object(
                {
                    "user": {"type": "string", "pattern": NAME_PATTERN},
                    "tenant": {"type": "string", "pattern": NAME_PATTERN, "description": "Your own if left out."},
                    "scopes": {"type": "array", "minItems": 1, "items": {"enum": list(Scope)}},
                    "expires": {
                        "description": "Seconds, a duration such as `30d`, or `never`.",
                        "anyOf": [{"type": "number", "minimum": 1, "maximum": MAX_VALID_S}, {"type": "string"}],
                        "default": "90d",
                    },
                },
                optional=("tenant", "expires"),
            ),
            "additionalProperties": False,
        }
    ),
}
FIXED_PATHS["/healthz"] = _word("Say whether the process answers", {"200": "`ok`"})
FIXED_PATHS["/readyz"] = _word("Say whether calls would run", {"200": "`ready`", "503": "`not ready: ` and why"})
