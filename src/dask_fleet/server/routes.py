"""All routes but the hot path, in one list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from dask_fleet.controller.controller import Controller
from dask_fleet.server import (
    routes_clusters,
    routes_events,
    routes_jobs,
    routes_logs,
    routes_meta,
    routes_results,
    routes_spool,
    routes_tokens,
)
from dask_fleet.server.signin import SignIn
from dask_fleet.server.tokens import TokenBook


def all_routes(
    controller: Controller,
    *,
    sign_in: SignIn,
    tokens: TokenBook,
    needs_agent: bool,
    spool: Path | None = None,
    figures: Callable[[], dict[str, Any]] | None = None,
) -> list[BaseRoute]:
    """Return every route of the router; calls of endpoints do not pass through it.

    `figures` tells what administrators see of the server's edge.
    """
    return [
        *routes_jobs.routes(controller),
        *routes_results.routes(controller),
        *routes_events.routes(controller),
        *routes_logs.routes(controller),
        *routes_clusters.routes(controller),
        *routes_tokens.routes(tokens),
        *(routes_spool.routes(controller, spool=spool) if spool is not None else ()),
        *routes_meta.routes(controller, sign_in=sign_in, needs_agent=needs_agent, figures=figures),
    ]
