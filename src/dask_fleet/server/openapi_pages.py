"""The pages of the OpenAPI document that are the same for every service."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.states import RunState
from dask_fleet.server.auth import Scope
from dask_fleet.server.openapi_logs import FOLLOW_PARAMETERS, logs_path
from dask_fleet.server.openapi_parts import (
    TIME,
    header_parameter,
    job_responses,
    json_content,
    object_of,
    ok,
    page,
    problems,
    query_parameter,
    ref,
)
from dask_fleet.server.routes_tokens import MAX_VALID_S, NAME_PATTERN

_ANY_FORM = {
    "application/json": {},
    "*/*": {"schema": {"description": "The stored form: Arrow stream, NPY, PNG, text, bytes."}},
}
_JOB_PARAMETER = ref("parameters", "JobId")
_WAIT_PARAMETER = ref("parameters", "Wait")
_USUAL = problems(400, 401, 403, 404, 421, 500, 503, 507)
_FREE_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 200}

FIXED_PATHS: dict[str, Any] = {
    "/v1/jobs": page(
        "get",
        tag="jobs",
        summary="List jobs, newest first",
        parameters=(
            query_parameter("status", {"enum": list(RunState)}, "State of the current run."),
            query_parameter("service", _FREE_TEXT, "Name of the service."),
            query_parameter("endpoint", _FREE_TEXT, "Name of the endpoint; needs `service`."),
            query_parameter("user", _FREE_TEXT, "Who asked first."),
            query_parameter("tag", _FREE_TEXT, "One tag."),
            query_parameter("created_after", TIME, "Accepted at or after."),
            query_parameter("created_before", TIME, "Accepted before."),
            query_parameter("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "Most on a page."),
            query_parameter("cursor", {"type": "string"}, "`next_cursor` of the page before, with the same filters."),
        ),
        responses={
            **ok(
                object_of(
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
        **page(
            "get",
            tag="jobs",
            summary="Show a job",
            parameters=(_JOB_PARAMETER, _WAIT_PARAMETER),
            responses={**job_responses({}, states=(200,)), **_USUAL},
        ),
        **page(
            "delete",
            tag="jobs",
            summary="Cancel a job",
            parameters=(_JOB_PARAMETER,),
            responses={**job_responses({}, states=(200, 202)), **_USUAL},
        ),
    },
    "/v1/jobs/{job_id}:retry": page(
        "post",
        tag="jobs",
        summary="Run a failed, cancelled or expired job again",
        parameters=(_JOB_PARAMETER,),
        responses={**job_responses({}, states=(200, 202)), **problems(409), **_USUAL},
    ),
    "/v1/jobs/{job_id}/result": page(
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
    "/v1/jobs/{job_id}/events": page(
        "get",
        tag="jobs",
        summary="Follow a job by server-sent events, or have its story told",
        parameters=(
            _JOB_PARAMETER,
            header_parameter("Last-Event-ID", {"type": "string", "pattern": "^[0-9]{1,18}$"}, "Go on after this event."),
            query_parameter(
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
    "/v1/jobs/{job_id}/attempts": page(
        "get",
        tag="jobs",
        summary="List the executions of a job",
        parameters=(_JOB_PARAMETER,),
        responses={
            **ok(object_of({"attempts": {"type": "array", "items": ref("schemas", "Attempt")}}), "Oldest first."),
            **_USUAL,
        },
    ),
    "/v1/services": page(
        "get",
        tag="server",
        summary="List services and endpoints with their schemas",
        responses={
            **ok(object_of({"services": {"type": "array", "items": {"type": "object"}}}), "What can be called."),
            **problems(400, 401, 403, 421, 500),
        },
    ),
    "/v1/status": page(
        "get",
        tag="server",
        summary="Show the server's state: queue, agents",
        responses={
            **ok(
                object_of(
                    {
                        "version": {"type": "string"},
                        "queued": {"type": "integer"},
                        "running": {"type": "integer"},
                        "draining": {"type": "boolean"},
                        "stale_outcomes": {"type": "integer"},
                        "paused": {
                            "type": "array",
                            "items": object_of(
                                {
                                    "user": {"type": "string"},
                                    "until": {"type": "string", "format": "date-time"},
                                    "why": {"type": "string"},
                                }
                            ),
                        },
                        "agents": {"type": "array", "items": {"type": "object"}},
                        "edge": ref("schemas", "Edge"),
                    },
                    optional=("edge",),
                ),
                "As of now; `edge` for administrators only.",
            ),
            **problems(400, 401, 403, 421, 500),
        },
    ),
    "/v1/tokens": {
        **page(
            "get",
            tag="server",
            summary="List tokens: whose they are and what they may do",
            responses={
                **ok(object_of({"tokens": {"type": "array", "items": ref("schemas", "Token")}}), "Oldest first."),
                **problems(400, 401, 403, 421, 500, 503),
            },
        ),
        **page(
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
                                object_of({"token": {"type": "string", "pattern": "^fleet_[A-Za-z0-9_-]{43}$"}}),
                            ]
                        }
                    ),
                },
                **problems(400, 401, 403, 409, 413, 415, 421, 500, 503),
            },
        ),
    },
    "/v1/tokens/{token_id}": page(
        "delete",
        tag="server",
        summary="Revoke a token; what it has open ends within seconds",
        parameters=({"name": "token_id", "in": "path", "required": True, "schema": {"type": "string"}},),
        responses={**ok(ref("schemas", "Token"), "The token, revoked."), **_USUAL},
    ),
    "/v1/signin": page(
        "post",
        tag="server",
        summary="Make a one-time link that signs a browser in",
        responses={
            "201": {
                "description": "The link, good once.",
                "content": json_content(object_of({"url": {"type": "string"}, "valid_s": {"type": "number"}})),
            },
            **problems(400, 401, 403, 421, 500),
        },
    ),
}


def _word(summary: str, responses: dict[str, str]) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    described = page(
        "get",
        tag="server",
        summary=summary,
        responses={status: {"description": text, "content": content} for status, text in responses.items()},
    )
    described["get"]["security"] = []
    return described


FIXED_PATHS["/v1/tokens"]["post"]["requestBody"] = {
    "required": True,
    "content": json_content(
        {
            **object_of(
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
