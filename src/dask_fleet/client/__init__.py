"""The SDK: an asynchronous core, and a thin synchronous face over it."""

from __future__ import annotations

from dask_fleet.client.async_client import AsyncClient
from dask_fleet.client.async_job import AsyncJob
from dask_fleet.client.completion import as_completed
from dask_fleet.client.job import Job
from dask_fleet.client.logs import LogText
from dask_fleet.client.sse import JobEvent
from dask_fleet.client.sync_client import Client

__all__ = ["AsyncClient", "AsyncJob", "Client", "Job", "JobEvent", "LogText", "as_completed"]
