"""Where an endpoint's Dask graphs are computed: said by its author, read by the worker process that runs it.

It travels in the manifest for people to see, not with each attempt: a worker process has loaded the same version of the
service as the server and finds it there.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

DEFAULT_LOCAL_TASKS = 1_000
"""Tasks that the threads of one worker process get through in about a tenth of a second if each does next to nothing: as
long as it takes to have a cluster."""

MAX_ATTEMPTS = 64
"""Attempts of one worker process, those included that have given their thread away and wait for a cluster: each has a
thread or a coroutine, a connection, and what it keeps in memory. A process with more threads takes as many."""


class PlacementMode(StrEnum):
    """What the author asks for."""

    AUTO = "auto"
    """Small graphs on the worker process, large ones on a cluster of their own."""
    WORKER = "worker"
    """Never a cluster."""
    CLUSTER = "cluster"
    """Every graph on a cluster."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where graphs run, and what the workers of a job's cluster are like."""

    mode: PlacementMode = PlacementMode.AUTO
    local_tasks: int = DEFAULT_LOCAL_TASKS
    """With ``auto``: the most tasks of a graph that stays on the worker process."""
    workers: int | None = None
    """Dask workers of the job's cluster; ``None`` is as many as the graph can use and the pool can give."""
    threads_per_worker: int | None = None
    resources: dict[str, float] = {}
    """Of each worker, as in ``distributed``."""
