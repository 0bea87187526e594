"""Dask's configuration in the processes of a cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import dask

from dask_fleet.model.dask_configuration import flat

PROXY_ROUTE = "distributed.http.proxy"
"""Lets anyone who reaches the dashboard reach any address the scheduler reaches. Never served."""

_QUIET: dict[str, Any] = {
    # An idle worker costs 1.2 % of a core with Dask's defaults. What these lose: profiles, GIL contention, disk rates, and
    # ticks finer than half a second.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.comm.timeouts.connect": "10s",
}

_JOB_SCHEDULER: dict[str, Any] = {
    # The graphs of jobs are short, and three times as fast when the workers hold their next tasks already. A user's own
    # cluster has Dask's values: there, a wide graph that is not walked depth first may need far more memory.
    "distributed.scheduler.worker-saturation": float("inf"),
    "distributed.scheduler.active-memory-manager.start": False,
}

_MEMBER: dict[str, Any] = _QUIET | {
    "distributed.worker.http.routes": [],  # no HTTP listener: the agent watches the process
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.worker.memory.spill": 0.6,
    "distributed.client.scheduler-info-interval": "30s",
}


def set_scheduler_defaults() -> None:
    """Make our values the defaults of this process. What the host's or the user's files and variables say stays."""
    _set_defaults(_QUIET)
    _quiet_standard_error()


def set_job_scheduler_defaults() -> None:
    """As `set_scheduler_defaults`, of a scheduler that turns out to be that of a job's cluster."""
    _set_defaults(_JOB_SCHEDULER)


def set_member_defaults() -> None:
    """Make our values the defaults of this process, as `set_scheduler_defaults`."""
    _set_defaults(_MEMBER)
    _quiet_standard_error()


def configure_process(config: Mapping[str, Any]) -> None:
    """Let all of this process, tasks included, read a cluster's configuration: for one that serves no other cluster."""
    dask.config.set(flat(config))


def without_proxy() -> list[str]:
    """Return the dashboard's routes less the proxy, whatever is configured."""
    return [route for route in dask.config.get("distributed.scheduler.http.routes") if route != PROXY_ROUTE]


def _set_defaults(values: Mapping[str, Any]) -> None:
    missing = object()
    # Of a value that was set to what Dask has anyway, Dask does not know that it was set.
    ours = {name: value for name, value in values.items() if dask.config.get(name, missing, config=_told()) is missing}
    dask.config.update_defaults(_nested(ours))


@cache
def _told() -> dict[str, Any]:
    """Return what files and variables say, without anybody's defaults. They are read once in a process."""
    return cast("dict[str, Any]", dask.config.collect())


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in config.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _quiet_standard_error() -> None:
    """Let only warnings of Dask reach standard error; ``get_worker_logs`` and ``get_scheduler_logs`` keep the rest."""
    for handler in logging.getLogger("distributed").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.level < logging.WARNING:
            handler.setLevel(logging.WARNING)
