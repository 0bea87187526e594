"""A job as its caller holds it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from dask_fleet.client.async_job import AsyncJob
from dask_fleet.client.background_loop import BackgroundLoop
from dask_fleet.client.logs import LogText
from dask_fleet.client.rendering import job_html, job_text
from dask_fleet.client.sse import JobEvent
from dask_fleet.model.states import RunState

T = TypeVar("T")


class Job:
    """An accepted request. Its methods are those of `AsyncJob`, which has their documentation in full.

    What it knows of the job is from the last answer of the server; `refresh_status`, `wait` and `result` ask again.
    """

    def __init__(self, loop: BackgroundLoop, inner: AsyncJob, owner: object) -> None:
        self._loop = loop
        self._inner = inner
        self._owner = owner  # a client that nobody else holds must live as long as its jobs are used

    @property
    def job_id(self) -> str:
        """The job's id: equal requests have equal ids."""
        return self._inner.job_id

    @property
    def status(self) -> RunState:
        """State of the current run, as last heard; `refresh_status` asks."""
        return self._inner.status

    @property
    def done(self) -> bool:
        """Whether the run had ended when last heard of."""
        return self._inner.done

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far it is (``done``, ``total``, ``text``), as last heard."""
        return self._inner.progress

    @property
    def document(self) -> dict[str, Any]:
        """The job document of the API, as last heard; of a job from ``map``, before it is asked for, only what names it."""
        return self._inner.document

    def refresh_status(self) -> RunState:
        """Ask the server for the state of now and return it."""
        return self._loop.run(self._inner.refresh_status())

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> RunState:
        """Wait for the run to end, however it does; `WaitTimeout` after `timeout` seconds."""
        if progress and not self.done:
            return self._reported(self._inner.wait, timeout)
        return self._loop.run(self._inner.wait(timeout))

    def result(self, timeout: float | None = None, *, progress: bool = False) -> Any:
        """Wait for the result and return it: a table as a table, an array as an array.

        Raises
        ------
        JobFailed, JobCancelled, JobExpired
            If the run ended without a result; ``failure`` says why.
        ResultExpired
            If the result is no longer kept.
        WaitTimeout
            If there is none after `timeout` seconds; the job goes on.
        """
        if progress and not self.done:
            return self._reported(self._inner.result, timeout)
        return self._loop.run(self._inner.result(timeout))

    def save(self, path: str | Path, *, media_type: str | None = None) -> int:
        """Wait for the result and write its bytes into a file; return their number."""
        return self._loop.run(self._inner.save(path, media_type=media_type))

    def read(self, media_type: str | None = None) -> bytes:
        """Wait for the result and return its bytes, in the stored form if `media_type` asks for no other."""
        return self._loop.run(self._inner.read(media_type))

    def cancel(self) -> RunState:
        """Ask for the run to be cancelled and return its state; a running one ends soon after."""
        return self._loop.run(self._inner.cancel())

    def retry(self) -> RunState:
        """Open the next run of a failed, cancelled or expired job and return its state."""
        return self._loop.run(self._inner.retry())

    def attempts(self) -> list[dict[str, Any]]:
        """Return all executions of the job, oldest first."""
        return self._loop.run(self._inner.attempts())

    def story(self) -> dict[str, Any]:
        """Return how the job came to its state, in sentences. See `AsyncJob.story`."""
        return self._loop.run(self._inner.story())

    def events(self, *, after: int | None = None, logs: bool = False) -> Iterator[JobEvent]:
        """Yield what has happened to the job, then what happens, until its run has ended; with `logs`, also its output."""
        return self._loop.iterate(self._inner.events(after=after, logs=logs))

    @overload
    def logs(
        self, *, follow: Literal[False] = False, stream: str = "all", attempt: int | None = None, tail: int | None = None
    ) -> str: ...

    @overload
    def logs(self, *, follow: Literal[True], stream: str = "all", attempt: int | None = None) -> Iterator[LogText]: ...

    def logs(
        self, *, follow: bool = False, stream: str = "all", attempt: int | None = None, tail: int | None = None
    ) -> str | Iterator[LogText]:
        """Return what the job's latest attempt (or another) wrote, or with `follow` yield it as it is written."""
        if follow:
            if tail is not None:
                raise ValueError("tail and follow exclude each other")
            return self._loop.iterate(self._inner.logs(follow=True, stream=stream, attempt=attempt))
        return self._loop.run(self._inner.logs(stream=stream, attempt=attempt, tail=tail))

    def log_sizes(self) -> list[dict[str, Any]]:
        """Return what there is of each attempt's log: ``attempt``, and ``streams`` with their ``size`` in bytes."""
        return self._loop.run(self._inner.log_sizes())

    def _reported(self, wait: Callable[[float | None], Coroutine[Any, Any, T]], timeout: float | None) -> T:
        """Wait with a progress bar drawn by this thread."""
        from dask_fleet.client.bars import open_bar

        with open_bar(self._inner.label) as bar:
            return self._loop.run_reported(lambda report: self._inner.reported(wait(timeout), report), bar.update)

    def __repr__(self) -> str:
        return job_text(type(self).__name__, self._inner.document)

    def _repr_html_(self) -> str:
        return job_html(self._inner.document)
