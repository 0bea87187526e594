"""What the OpenAPI document says of Dask clusters."""

from __future__ import annotations

from typing import Any

from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.clusters import ClusterAccess, ClusterKind
from dask_fleet.server.cluster_body import MAX_THREADS, MAX_WORKERS, NAME_PATTERN
from dask_fleet.server.openapi_parts import json_content, or_null, problems, ref
from dask_fleet.server.query import MAX_WAIT_S

_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
_NUMBERS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "number"}}
_VERSIONS: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT, "description": "By package, and `python`."}
_CLIENT_VERSIONS: dict[str, Any] = {**_VERSIONS, "description": "The client's; it is refused where Dask would fail."}
_DURATION: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}],
    "description": "Seconds, text such as `20m`, or null for no limit.",
}
_USUAL = problems(400, 401, 403, 404, 421, 500, 503, 507)
_CHANGING = {**problems(409, 413, 415), **_USUAL}
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Its name (of a living one), or its id.",
    "schema": _TEXT,
}
_PREFER = ref("parameters", "Prefer")
_WORKERS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_WORKERS, "description": "Dask workers."}


def _object(properties: dict[str, Any], *required: str, strict: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return {**schema, "additionalProperties": False} if strict else schema


_CLUSTER: dict[str, Any] = {
    "cluster_id": _TEXT,
    "name": _TEXT,
    "status": {"enum": list(ClusterState)},
    "kind": {"enum": list(ClusterKind)},
    "user": _TEXT,
    "epoch": {"type": "integer", "description": "Number of its present scheduler, counted from 1."},
    "address": {"type": ["string", "null"], "description": "Of the scheduler."},
    "dashboard": {"type": ["string", "null"], "description": "On the loopback of the scheduler's host."},
    "ca": {"type": ["string", "null"], "description": "Certificate of the cluster's own authority (PEM)."},
    "agent": {"type": ["string", "null"]},
    "n_workers": {**_WORKERS, "description": "Dask workers that are wanted."},
    "workers": {"type": "integer", "description": "Dask workers that have joined."},
    "joining": {"type": "integer", "description": "Dask workers that have got slots and have not joined yet."},
    "waiting_for": {"type": ["string", "null"], "description": "What it waits for, in a sentence."},
    "tasks": {"type": "integer"},
    "clients": {"type": "integer"},
    "idle_s": {"type": "number"},
    "threads_per_worker": {"type": "integer"},
    "resources": _NUMBERS,
    "memory_limit": {"type": ["integer", "null"]},
    "scheduler_memory_limit": {"type": ["integer", "null"]},
    "pool": _TEXT,
    "idle_timeout_s": {"type": ["number", "null"]},
    "max_lifetime_s": {"type": ["number", "null"]},
    "access": {"enum": list(ClusterAccess)},
    "shared": {"type": "boolean"},
    "shutdown_on_close": {"type": "boolean"},
    "created_at": or_null(_TIME),
    "running_at": or_null(_TIME),
    "closed_at": or_null(_TIME),
    "reason": {"type": ["string", "null"], "description": "Why it closed, failed or lost its scheduler."},
    "links": _object(dict.fromkeys(("self", "events", "certificate"), _TEXT)),
}

CLUSTER_SCHEMAS: dict[str, Any] = {
    "Cluster": _object(_CLUSTER, *_CLUSTER),
    "NewCluster": _object(
        {
            "name": {"type": "string", "pattern": NAME_PATTERN, "description": "Unique among living clusters."},
            "n_workers": {**_WORKERS, "default": 1},
            "threads_per_worker": {"type": "integer", "minimum": 1, "maximum": MAX_THREADS, "default": 1},
            "resources": {**_NUMBERS, "description": "Of each worker, as in `distributed`."},
            "pool": {"type": "string", "pattern": NAME_PATTERN, "default": "default"},
            "idle_timeout": {**_DURATION, "default": "20m"},
            "max_lifetime": {**_DURATION, "default": None},
            "memory_limit": {
                "anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}],
                "description": "Of each worker process: bytes, or text such as `4GiB`; null is the agent's.",
            },
            "scheduler_memory_limit": {
                "anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}],
                "description": "Of its scheduler process, at least 256 MiB; null is the agent's.",
            },
            "config": {"type": "object", "description": "Dask's configuration, nested or with dotted keys."},
            "env": {
                "type": "object",
                "additionalProperties": _TEXT,
                "description": "Variables of each worker process. They are kept in the cluster's record: give no secrets.",
            },
            "preload": {"type": "array", "items": _TEXT, "maxItems": 100, "description": "Modules that workers import."},
            "scheduler_preload": {"type": "array", "items": _TEXT, "maxItems": 100},
            "dashboard": {"type": "boolean", "default": True},
            "access": {
                "enum": list(ClusterAccess),
                "default": ClusterAccess.USER,
                "description": "Who may use, scale and close it: its user, or all of the tenant; administrators always may.",
            },
            "shared": {
                "type": "boolean",
                "default": False,
                "description": "Its workers join warm processes of the tenant and share their state, instead of fresh ones.",
            },
            "shutdown_on_close": {"type": "boolean", "default": True, "description": "Noted for the cluster's creator."},
            "csr": {"type": "string", "description": "Certificate request (PEM) of a client, to be signed at once."},
            "versions": _CLIENT_VERSIONS,
        },
        strict=True,
    ),
    "ClusterSize": _object(
        {
            "n_workers": _WORKERS,
            "leave": {
                "type": "array",
                "items": _TEXT,
                "maxItems": MAX_WORKERS,
                "description": "Names of workers that go first if there are too many; otherwise the youngest go.",
            },
        },
        "n_workers",
        strict=True,
    ),
    "ClusterWithCertificate": {
        "allOf": [
            ref("schemas", "Cluster"),
            _object({"certificate": {**_TEXT, "description": "Signed, at most for a day (PEM)."}, "versions": _VERSIONS}),
        ]
    },
    "ClusterStory": _object(
        {
            "cluster_id": _TEXT,
            "name": _TEXT,
            "status": {"enum": list(ClusterState)},
            "events": {
                "type": "array",
                "items": _object(
                    {
                        "event_id": {"type": "integer"},
                        "epoch": {"type": "integer"},
                        "kind": _TEXT,
                        "at": _TIME,
                        "data": {"type": "object"},
                    }
                ),
            },
        }
    ),
}


def _answer(schema: str, text: str) -> dict[str, Any]:
    return {"description": text, "content": json_content(ref("schemas", schema))}


def _body(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": json_content(schema)}


def _location() -> dict[str, Any]:
    return {"Location": {"description": "The cluster's page.", "schema": _TEXT}}


CLUSTER_PATHS: dict[str, Any] = {
    "/v1/clusters": {
        "get": {
            "tags": ["clusters"],
            "summary": "List clusters, newest first",
            "parameters": [
                {"name": "all", "in": "query", "description": "Ended ones too.", "schema": {"enum": ["true", "false"]}},
                {
                    "name": "spares",
                    "in": "query",
                    "description": "Those too that are kept ready and that nobody has yet.",
                    "schema": {"enum": ["true", "false"]},
                },
            ],
            "responses": {
                "200": {
                    "description": "Of the caller's tenant.",
                    "content": json_content(_object({"clusters": {"type": "array", "items": ref("schemas", "Cluster")}})),
                },
                **_USUAL,
            },
        },
        "post": {
            "tags": ["clusters"],
            "summary": "Take a Dask cluster",
            "description": "It starts with the slots that are free, and grows. Needs the scope `run_code`, as all that "
            "uses or changes a cluster. With an Idempotency-Key, repeating the request finds the cluster it made.",
            "parameters": [_PREFER, ref("parameters", "IdempotencyKey")],
            "requestBody": _body(ref("schemas", "NewCluster"), required=False),
            "responses": {
                "201": {
                    **_answer(
                        "ClusterWithCertificate",
                        "It runs, if it was waited for with the workers it can have for now; with the certificate that was "
                        "asked for.",
                    ),
                    "headers": _location(),
                },
                "202": {
                    **_answer("ClusterWithCertificate", "It is on its way; `waiting_for` says what it waits for."),
                    "headers": _location(),
                },
                **_CHANGING,
                **problems(422, 429, 504),
            },
        },
    },
    "/v1/clusters/{name}": {
        "get": {
            "tags": ["clusters"],
            "summary": "Show a cluster",
            "parameters": [
                _NAME,
                {
                    "name": "wait",
                    "in": "query",
                    "description": "Hold the answer until it runs or has ended, at most so many seconds.",
                    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S},
                },
                {
                    "name": "workers",
                    "in": "query",
                    "description": "With `wait`: until the workers that it can have for now have joined, too.",
                    "schema": {"enum": ["true", "false"]},
                },
            ],
            "responses": {"200": _answer("Cluster", "As of now."), **_USUAL},
        },
        "patch": {
            "tags": ["clusters"],
            "summary": "Change how many workers a cluster has; data of those that leave is moved first",
            "parameters": [_NAME],
            "requestBody": _body(ref("schemas", "ClusterSize")),
            "responses": {"200": _answer("Cluster", "With the new target."), **_CHANGING, **problems(429)},
        },
        "delete": {
            "tags": ["clusters"],
            "summary": "Close a cluster; repeating it is harmless",
            "parameters": [_NAME, _PREFER],
            "responses": {
                "200": _answer("Cluster", "It has ended."),
                "202": _answer("Cluster", "It is ending."),
                **_USUAL,
            },
        },
    },
    "/v1/clusters/{name}/certificate": {
        "post": {
            "tags": ["clusters"],
            "summary": "Have a client's certificate signed, to join a cluster or before the old one ends",
            "parameters": [_NAME],
            "requestBody": _body(_object({"csr": _TEXT, "versions": _CLIENT_VERSIONS}, "csr", strict=True)),
            "responses": {
                "200": _answer("ClusterWithCertificate", "The cluster with the certificate."),
                **_CHANGING,
                **problems(504),
            },
        }
    },
    "/v1/clusters/{name}/events": {
        "get": {
            "tags": ["clusters"],
            "summary": "Tell the story of a cluster",
            "parameters": [_NAME],
            "responses": {"200": _answer("ClusterStory", "Oldest first."), **_USUAL},
        }
    },
}
