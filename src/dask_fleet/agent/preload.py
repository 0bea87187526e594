"""Imported once by the forkserver, so that every worker process is born with the heavy libraries in shared memory.

Importing them is safe before a fork; *using* some of them (thread pools of polars, numba, scikit-learn) is not, so nothing
here calls anything but what is known to start no thread.
"""

from __future__ import annotations

import gc
import importlib
import os

FORKSERVER_PID = os.getpid()
"""The forkserver: a worker process whose parent is another process was orphaned before it could ask to die with it."""

_HEAVY = (
    "msgspec",
    "pydantic.json_schema",
    "pydantic.main",
    "pydantic.type_adapter",
    "jsonschema_rs",
    "numpy",
    "pandas",
    "pyarrow",
    "dask.threaded",
    "dask.array",
    "dask.dataframe",
    "distributed",
    "dask_fleet.agent.capture",
    "dask_fleet.agent.standby",
    "dask_fleet.agent.worker_process",
    "dask_fleet.agent.runner",
    "dask_fleet.observability.logs",
    "dask_fleet.services.loading",
    "dask_fleet.services.parameters",
    "dask_fleet.agent.clusters.membership",
    "dask_fleet.agent.clusters.scheduler_process",
    "dask_fleet.agent.clusters.fleet_scheduler",
    "dask_fleet.agent.job_cluster",
)


def take_over() -> None:
    """Let this process, forked from a forkserver, be one itself."""
    global FORKSERVER_PID
    FORKSERVER_PID = os.getpid()


def _preload() -> None:
    for name in _HEAVY:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - what is absent or broken is the business of the job that imports it
            continue
    _read_authorities()
    # What lives now is never freed: out of the collector's sight it stays shared instead of being copied by its marks.
    gc.collect()
    gc.freeze()


def _read_authorities() -> None:
    """Let Tornado read the host's certificate authorities now.

    It would with the first connection that each process accepts, which takes 30 ms: the larger part of the time to the first
    result of a spare cluster. It uses none of them there. On Linux no thread is started for it.
    """
    try:
        from tornado import netutil

        netutil._client_ssl_defaults()  # noqa: SLF001 - cached there
    except Exception:  # noqa: BLE001, S110 - other versions read them elsewhere, at another time
        pass


_preload()
