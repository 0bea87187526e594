"""The OpenAPI 3.1 document: every page of the API, and one path for each endpoint of the manifest."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.manifest import EndpointManifest, Manifest, ServiceManifest
from dask_fleet.server.batch_body import MAX_BATCH_BYTES, MAX_ITEMS
from dask_fleet.server.json_schemas import Components
from dask_fleet.server.openapi_clusters import CLUSTER_PATHS, CLUSTER_SCHEMAS
from dask_fleet.server.openapi_pages import FIXED_PATHS
from dask_fleet.server.openapi_parts import job_responses, json_content, problems, ref
from dask_fleet.server.openapi_schemas import COMMON_PARAMETERS, COMMON_SCHEMAS
from dask_fleet.server.signin import COOKIE_NAME
from dask_fleet.server.submit_batch import BATCH_SUFFIX

_TEXT = """Calls are durable jobs: the answer to a POST names the job, and equal requests are one job.

Errors are problem documents (RFC 9457) with a stable `code`. Results keep NaN and infinities as
`{"$float": "NaN"}`, which JSON has no number for."""


def openapi_document(manifest: Manifest, *, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of a server that serves `manifest`."""
    components = Components({**COMMON_SCHEMAS, **CLUSTER_SCHEMAS})
    paths: dict[str, Any] = {}
    for service in manifest.services:
        for endpoint in service.endpoints:
            path = f"/v1/{service.name}/{endpoint.name}"
            paths[path] = {"post": _operation(service, endpoint, components)}
            paths[path + BATCH_SUFFIX] = {"post": _batch(service, endpoint, components)}
    paths.update(FIXED_PATHS)
    paths.update(CLUSTER_PATHS)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "Dask Fleet", "version": version, "description": _TEXT},
        "tags": [
            *({"name": service.name, "description": service.doc} for service in manifest.services),
            {"name": "jobs", "description": "Look at jobs, wait for them, fetch results, cancel and retry."},
            {"name": "clusters", "description": "Take Dask clusters, look at them, scale them, give them back."},
            {"name": "server", "description": "What this server serves, and how it is."},
        ],
        "security": [{"bearer": []}, {"cookie": []}],
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "parameters": COMMON_PARAMETERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The token in the server's data folder."},
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE_NAME,
                    "description": "A browser's session. Requests that change something must come from the server's pages.",
                },
            },
        },
    }


def _operation(service: ServiceManifest, endpoint: EndpointManifest, components: Components) -> dict[str, Any]:
    prefix = f"{service.name}.{endpoint.name}"
    body = components.add(f"{prefix}.Parameters", endpoint.parameters)
    result: dict[str, Any] = {}
    if endpoint.result_schema is not None:
        result = components.add(f"{prefix}.Result", endpoint.result_schema, tagged_floats=True)
    summary, _, rest = endpoint.doc.strip().partition("\n")
    required = bool(endpoint.parameters.get("required"))
    return {
        "operationId": f"{service.name}_{endpoint.name}",
        "tags": [service.name],
        "summary": summary,
        "description": f"{rest.strip()}\n\n{_policy_text(endpoint)}".strip(),
        "parameters": [
            ref("parameters", name)
            for name in ("Refresh", "Prefer", "FleetPriority", "FleetDeadline", "FleetTags", "IdempotencyKey")
        ],
        "requestBody": {"required": required, "content": json_content(body)},
        "responses": {
            **job_responses(result, states=(200, 202)),
            **problems(400, 401, 403, 413, 415, 421, 422, 429, 500, 503, 507),
        },
    }


def _batch(service: ServiceManifest, endpoint: EndpointManifest, components: Components) -> dict[str, Any]:
    body = components.add(f"{service.name}.{endpoint.name}.Parameters", endpoint.parameters)
    texts = {200: "An entry for each set, in order; no job of them is under way.", 202: "An entry for each set, in order."}
    return {
        "operationId": f"{service.name}_{endpoint.name}_batch",
        "tags": [service.name],
        "summary": f"{endpoint.name}, for many parameter sets",
        "description": (
            f"At most {MAX_ITEMS:,} sets and {MAX_BATCH_BYTES >> 20} MiB, as a JSON array or one set a line (NDJSON). The "
            "options stand for all of them. What is wrong with one set is its entry and changes nothing for the others; "
            "equal sets are one job. All that is called accepted is durable when the answer comes."
        ),
        "parameters": [
            ref("parameters", name)
            for name in ("Refresh", "FleetPriority", "FleetDeadline", "FleetTags", "IdempotencyKey")
        ],
        "requestBody": {
            "required": True,
            "content": {
                **json_content({"type": "array", "items": body, "maxItems": MAX_ITEMS}),
                "application/x-ndjson": {"schema": body},
            },
        },
        "responses": {
            **{
                str(status): {"description": text, "content": json_content(ref("schemas", "Batch"))}
                for status, text in texts.items()
            },
            **problems(400, 401, 403, 413, 415, 421, 429, 500, 503),
        },
    }


def _policy_text(endpoint: EndpointManifest) -> str:
    policy = endpoint.policy
    kept = f"Results are kept {duration(policy.cache_s)}" if policy.pure else "Each call is a job of its own"
    again = f", run again up to {policy.retries} times if it raises" if policy.retries else ""
    return f"Returns: {endpoint.returns}. {kept}; an attempt may take {duration(policy.timeout_s)}{again}."


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``30 d``, ``2 min``, ``1.5 s``."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
