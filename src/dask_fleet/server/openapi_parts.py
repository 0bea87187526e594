"""What descriptions of pages are put together from: references, answers, parameters."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.errors import error_classes
from dask_fleet.model.ids import JOB_ID_PATTERN

TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
JOB_ID: dict[str, Any] = {"type": "string", "pattern": "^" + JOB_ID_PATTERN.pattern.removesuffix(r"\Z") + "$"}
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


def object_of(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the schema of an object whose properties are required, but for `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def query_parameter(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a parameter of the query."""
    return {"name": name, "in": "query", "description": text, "schema": schema}


def header_parameter(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a parameter in a header."""
    return {"name": name, "in": "header", "description": text, "schema": schema}


def page(
    method: str, *, tag: str, summary: str, responses: dict[str, Any], parameters: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    """Return a page's description for one method."""
    return {
        method: {
            "tags": [tag],
            "summary": summary,
            **({"parameters": list(parameters)} if parameters else {}),
            "responses": responses,
        }
    }


def ok(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the answer 200 with a JSON body."""
    return {"200": {"description": text, "content": json_content(schema)}}
