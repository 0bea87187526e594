"""What the OpenAPI document says of logs."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.logs import MAX_LOG_BYTES, LogStream

_PLACES = "^([0-9]{1,9}-(stdout|stderr|log)-[0-9]{1,7}(,[0-9]{1,9}-(stdout|stderr|log)-[0-9]{1,7})*)?$"
_TEXT = {"text/plain": {"schema": {"type": "string"}}}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


LOGS_SCHEMA = _object(
    job_id={"type": "string"},
    attempts=_list(
        _object(
            attempt={"type": "integer"},
            streams=_list(
                _object(
                    stream={"enum": list(LogStream)},
                    size={"type": "integer", "description": "Bytes."},
                    link={"type": "string"},
                )
            ),
        )
    ),
)

FOLLOW_PARAMETERS = (
    _query("logs", {"enum": ["true", "false"]}, "Give what the attempts write too, as `log` events."),
    _query(
        "logs_after",
        {"type": "string", "pattern": _PLACES, "maxLength": 1000, "examples": ["1-stdout-4096,1-log-0"]},
        "What the caller has of the logs: attempt, stream and bytes. Attempts before the first named are left out.",
    ),
)


def logs_path(job_parameter: dict[str, Any], problems: dict[str, Any]) -> dict[str, Any]:
    """Return the description of ``/v1/jobs/{job_id}/logs``."""
    return {
        "get": {
            "tags": ["jobs"],
            "summary": "Read what a job wrote",
            "parameters": [
                job_parameter,
                _query("stream", {"enum": [*LogStream, "all"]}, "`log` is Python's logging; `all` if not given."),
                _query("attempt", {"type": "integer", "minimum": 1, "maximum": 10**9 - 1}, "Of that one; else the latest."),
                _query("tail", {"type": "integer", "minimum": 0, "maximum": 100_000}, "Lines at the end of each stream."),
                _query(
                    "offset",
                    {"type": "integer", "minimum": 0, "maximum": MAX_LOG_BYTES},
                    "From that byte on; with a single stream, without `tail`.",
                ),
            ],
            "responses": {
                "200": {
                    "description": "The text, several streams below headings; or, as JSON, what there is of each attempt.",
                    "content": {**_TEXT, "application/json": {"schema": {"$ref": "#/components/schemas/Logs"}}},
                },
                "206": {"description": "A part of a stream.", "content": _TEXT},
                **problems,
            },
        }
    }
