"""Dask Fleet: the production platform for Dask.

What an author of a service needs is here::

    from dask_fleet import Service, progress, cancelled, get_client

and what a caller needs::

    from dask_fleet import Client, AsyncClient

and who wants a Dask cluster::

    from dask_fleet import FleetCluster

Names are loaded when they are first used, so that ``import dask_fleet`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_fleet.client import AsyncClient, AsyncJob, Client, FleetCluster, Job, as_completed
    from dask_fleet.model.errors import FleetError
    from dask_fleet.services import Service, cancelled, get_client, progress

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "dask_fleet.client",
    "AsyncJob": "dask_fleet.client",
    "Client": "dask_fleet.client",
    "FleetCluster": "dask_fleet.client",
    "FleetError": "dask_fleet.model.errors",
    "Job": "dask_fleet.client",
    "Service": "dask_fleet.services",
    "as_completed": "dask_fleet.client",
    "cancelled": "dask_fleet.services",
    "get_client": "dask_fleet.services",
    "progress": "dask_fleet.services",
}

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "FleetCluster",
    "FleetError",
    "Job",
    "Service",
    "__version__",
    "as_completed",
    "cancelled",
    "get_client",
    "progress",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'dask_fleet' has no attribute {name!r}") from None
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
