"""Exceptions of user code as bounded text. The exception itself never leaves the worker process."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from dask_fleet.model.errors import InvalidParameters
from dask_fleet.model.failure import Cause, Failure

_OUR_FOLDER = str(Path(__file__).parent)


def of_exception(exc: BaseException) -> Failure:
    """Return what is told about an exception of a function: type, message, and the traceback from its own frames on."""
    return Failure.bounded(Cause.EXCEPTION, _message(exc), type=_type_name(exc), traceback=_traceback(exc))


def of_invalid_parameters(exc: InvalidParameters) -> Failure:
    """Return what is told when a validator written in Python refused the parameters."""
    errors = exc.extra.get("errors")
    return Failure.bounded(
        Cause.INVALID_PARAMETERS, exc.detail, type=_type_name(exc), errors=errors if isinstance(errors, list) else []
    )


def of_cluster(exc: BaseException) -> Failure | None:
    """Return what is told where a job's Dask cluster is at fault, not the function; ``None`` if it is not.

    Only of jobs that asked for a cluster: the module that defines these exceptions needs Dask.
    """
    from distributed.scheduler import KilledWorker

    from dask_fleet.agent.job_cluster import ClusterUnavailable

    if isinstance(exc, ClusterUnavailable):
        return Failure.bounded(Cause.CLUSTER_UNAVAILABLE, str(exc))
    if isinstance(exc, KilledWorker):
        return Failure.bounded(Cause.WORKER_DIED, f"a task of its graph ended one worker after the other: {exc}")
    return None


def _type_name(exc: BaseException) -> str:
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ in {"builtins", "__main__"} else f"{cls.__module__}.{cls.__qualname__}"


def _message(exc: BaseException) -> str:
    try:
        return str(exc) or type(exc).__name__
    except BaseException:  # noqa: BLE001 - __str__ is user code too
        return f"{type(exc).__name__} (its __str__ raised)"


def _user_frames(tb: TracebackType | None) -> TracebackType | None:
    """Skip our own frames at the outer end: what called the function tells its author nothing."""
    first = tb
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
        first = first.tb_next
    return first


def _traceback(exc: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(exc), exc, _user_frames(exc.__traceback__)))
    except BaseException:  # noqa: BLE001 - formatting calls __str__ and __repr__ of user code
        return ""
