"""The SDK: an asynchronous core, and a thin synchronous face over it.

Names are loaded when they are first used: who takes a `FleetCluster` need not wait for what calls endpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_fleet.client.async_client import AsyncClient
    from dask_fleet.client.async_job import AsyncJob
    from dask_fleet.client.cluster import FleetCluster
    from dask_fleet.client.completion import as_completed
    from dask_fleet.client.job import Job
    from dask_fleet.client.logs import LogText
    from dask_fleet.client.sse import JobEvent
    from dask_fleet.client.sync_client import Client

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncJob": "async_job",
    "Client": "sync_client",
    "FleetCluster": "cluster",
    "Job": "job",
    "JobEvent": "sse",
    "LogText": "logs",
    "as_completed": "completion",
}

__all__ = ["AsyncClient", "AsyncJob", "Client", "FleetCluster", "Job", "JobEvent", "LogText", "as_completed"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
