"""What the Tab key offers: endpoints, parameters, jobs - asked of the server, quickly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from dask_fleet.model.errors import FleetError

_PATIENCE_S = 2.0


def _asked(ctx: typer.Context, ask: Callable[[Any], list[str]]) -> list[str]:
    from dask_fleet.client import Client

    try:
        with Client(ctx.params.get("url"), timeout_s=_PATIENCE_S, patience_s=0) as client:
            return ask(client)
    except (FleetError, OSError, RuntimeError):
        return []  # completion has nowhere to tell of an error


def endpoints(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the endpoints that begin so."""
    return [name for name in _asked(ctx, lambda client: client.services().names()) if name.startswith(incomplete)]


def parameters(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return ``name=`` of the endpoint's parameters, and ``name=value`` where the schema lists the values."""
    from dask_fleet.cli.coercion import listed_values

    service, _, endpoint = str(ctx.params.get("endpoint") or "").partition(".")

    def ask(client: Any) -> list[str]:
        info = client.services().find(service, endpoint)
        if info is None:
            return []
        found: list[str] = []
        for name in info.order:
            schema = (info.parameters.get("properties") or {}).get(name, {})
            found += [f"{name}={value}" for value in listed_values(schema, info.parameters)] or [f"{name}="]
        return found

    return [word for word in _asked(ctx, ask) if word.startswith(incomplete)]


def cluster_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the living clusters whose names begin so."""
    names = _asked(ctx, lambda client: [document["name"] for document in client.list_clusters()])
    return [name for name in names if name.startswith(incomplete)]


def job_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the newest jobs whose ids begin so."""
    ids = _asked(ctx, lambda client: [job.job_id for job in client.jobs(limit=50)])
    return [job_id for job_id in ids if job_id.startswith(incomplete)]


def token_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of tokens that begin so."""
    ids = _asked(ctx, lambda client: [token["token_id"] for token in client.list_tokens()])
    return [token_id for token_id in ids if token_id.startswith(incomplete)]
