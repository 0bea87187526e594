"""The job that a function is running for: how it reports progress and learns that it is no longer wanted."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from dask_fleet.model.failure import sendable

REPORT_EVERY_S = 0.1
MAX_TEXT_CHARS = 200

_current: ContextVar[JobContext | None] = ContextVar("dask_fleet_job", default=None)


class JobContext:
    """One attempt, as seen from inside the function.

    Entering it makes it the current job of this context (thread or asyncio task); leaving it hands over the
    last progress.

    Parameters
    ----------
    job_id, attempt
        What is being run.
    report
        Called with ``(done, total, text)``, at most about ten times a second, from whatever thread reports.
    is_cancelled
        Whether the job is no longer wanted.
    client
        Gives a client of the job's Dask cluster, or an awaitable of one where it is called on an event loop.
    """

    __slots__ = ("_last_s", "_lock", "_pending", "_token", "attempt", "client", "is_cancelled", "job_id", "report")

    def __init__(
        self,
        *,
        job_id: str,
        attempt: int,
        report: Callable[[float, float, str], None],
        is_cancelled: Callable[[], bool],
        client: Callable[[], Any] | None = None,
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.report = report
        self.is_cancelled = is_cancelled
        self.client = client
        self._lock = threading.Lock()
        self._last_s = -math.inf
        self._pending: tuple[float, float, str] | None = None
        self._token: Token[JobContext | None] | None = None

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        self.flush()

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Report, or keep the report back until a tenth of a second after the one before; the end (`done` =
        `total`) goes at once.
        """
        latest = (float(done), float(total), sendable(str(text)[:MAX_TEXT_CHARS]))
        if not (math.isfinite(latest[0]) and math.isfinite(latest[1])):
            raise ValueError(f"progress must be finite numbers, not {done!r} of {total!r}")
        now = time.monotonic()
        with self._lock:
            if now - self._last_s < REPORT_EVERY_S and not latest[0] >= latest[1] > 0:
                self._pending = latest
                return
            self._pending = None
            self._last_s = now
        self.report(*latest)

    def flush(self) -> None:
        """Hand over a report that was kept back, if there is one; any thread may call this, at any time."""
        with self._lock:
            latest, self._pending = self._pending, None
            if latest is not None:
                self._last_s = time.monotonic()
        if latest is not None:
            self.report(*latest)


def current_job() -> JobContext | None:
    """Return the job this code runs for; ``None`` outside one, as in a plain call of an endpoint's
    function.
    """
    return _current.get()


def progress(done: float, total: float, text: str = "") -> None:
    """Say how far the job is: shown in job documents, event streams and progress bars. Outside a job it does
    nothing.

    Parameters
    ----------
    done, total
        In whatever unit; ``total`` 0 means that nobody knows.
    text
        What is being done, for people; cut to 200 characters.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    job = _current.get()
    if job is not None:
        job.progress(done, total, text)


def cancelled() -> bool:
    """Whether the job is no longer wanted (cancelled, or past its time-out). Long functions ask now and then
    and return early.

    Outside a job the answer is ``False``. A function that does not ask is ended by force some seconds later.
    """
    job = _current.get()
    return job is not None and job.is_cancelled()


def get_client() -> Any:
    """Return a ``distributed.Client`` of a Dask cluster of this job's own; in an ``async`` function, ``await`` it.

    The first call asks the fleet for the cluster and waits until it has its first worker. From then on the function holds no
    thread of its worker process and no slot, so that it may wait for its cluster as long as it likes, and a plain
    ``.compute()`` or ``.persist()`` of it runs on that cluster, too. The cluster ends with the job.

    Inside a task of a Dask cluster, and outside of jobs, it is the client that ``distributed.get_client`` gives there.

    Raises
    ------
    RuntimeError
        If the endpoint says ``placement="worker"``, if the fleet cannot give a cluster, or if there is no client here.
    """
    job = _current.get()
    if job is not None and job.client is not None:
        return job.client()
    distributed = sys.modules.get("distributed")  # without it, nobody can have made a client
    try:
        if distributed is not None:
            return distributed.get_client()
    except ValueError:
        pass
    raise RuntimeError("there is no Dask client outside of a job; make one: distributed.Client(...)")
