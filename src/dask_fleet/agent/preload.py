"""Imported once by the forkserver, so that every worker process is born with the heavy libraries in shared memory.

Importing them is safe before a fork; *using* some of them (thread pools of polars, numba, scikit-learn) is not, so nothing
here calls anything but what is known to start no thread.

What draws dashboards comes when nobody waits for a process. With `PRELOAD_LATER` in the environment so does all that a Dask
cluster does not need: where somebody waits for the first one.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
from collections import deque
from collections.abc import Iterable
from types import FrameType

from dask_fleet.config.discovery import PRELOAD_LATER

FORKSERVER_PID = os.getpid()
"""The forkserver: a worker process whose parent is another process was orphaned before it could ask to die with it."""

_DASK = (
    "numpy",
    "distributed",
    "dask_fleet.agent.standby",
    "dask_fleet.agent.worker_process",
    "dask_fleet.agent.clusters.membership",
    "dask_fleet.agent.clusters.scheduler_process",
    "dask_fleet.agent.clusters.fleet_scheduler",
)
"""What a Dask cluster cannot do without."""
_REST = (
    "msgspec",
    "pydantic.json_schema",
    "pydantic.main",
    "pydantic.type_adapter",
    "jsonschema_rs",
    "pandas",
    "pyarrow",
    "dask.threaded",
    "dask.array",
    "dask.dataframe",
    "dask_fleet.agent.capture",
    "dask_fleet.agent.guard",
    "dask_fleet.agent.runner",
    "dask_fleet.observability.logs",
    "dask_fleet.services.loading",
    "dask_fleet.services.parameters",
    "dask_fleet.agent.job_cluster",
)
_LATE = ("distributed.dashboard.scheduler",)
"""A third of a second where bokeh is installed, for what is seldom looked at."""
_CALM_S = 2.0
"""Without a fork for so long, nobody waits for a process."""
_BREATH_S = 0.05
"""Between two imports: a fork may come in between."""


def take_over() -> None:
    """Let this process, forked from a forkserver, be one itself."""
    global FORKSERVER_PID
    FORKSERVER_PID = os.getpid()


def _import(names: Iterable[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - what is absent or broken is the business of the job that imports it
            continue


def _keep() -> None:
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


class _Later:
    """Imports modules, one after the other, whenever nothing was forked for a while.

    By a signal, because its handler runs on the forkserver's one thread: no fork can meet a module half imported. A process
    that is forked before imports by itself what it needs.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._left = deque(names)
        signal.signal(signal.SIGALRM, self._next)
        os.register_at_fork(after_in_parent=self._wait, after_in_child=self._forget)
        self._wait()

    def _wait(self, calm_s: float = _CALM_S) -> None:
        if self._left:
            signal.setitimer(signal.ITIMER_REAL, calm_s)

    def _next(self, _number: int, _frame: FrameType | None) -> None:
        if self._left:
            _import([self._left.popleft()])
            if not self._left:
                _keep()
            self._wait(_BREATH_S)

    def _forget(self) -> None:
        if self._left:
            self._left.clear()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


_at_first, _later = (_DASK, _REST + _LATE) if os.environ.pop(PRELOAD_LATER, None) else (_DASK + _REST, _LATE)
_import(_at_first)
_read_authorities()
_keep()
_Later(_later)
