"""A job as its caller holds it, asynchronously."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from dask_fleet.client.fan_out import TASK_PREFIX
from dask_fleet.client.logs import LogPlaces, LogText, followed, logs_query
from dask_fleet.client.options import MAX_WAIT_S
from dask_fleet.client.part_file import PartFile
from dask_fleet.client.problems import job_error
from dask_fleet.client.rendering import job_html, job_text
from dask_fleet.client.results import JSON_MEDIA_TYPE, NOTHING, decode_beside, inline_value
from dask_fleet.client.sse import EventParser, JobEvent
from dask_fleet.client.transport import Transport
from dask_fleet.model.errors import ConnectionFailed, FleetError, WaitTimeout
from dask_fleet.model.states import TERMINAL_STATES, RunState

LONG_POLL_S = 50.0
"""Below the server's most, and below the minute after which many proxies cut a silent connection."""
SILENCE_S = 60.0
"""An event stream silent for so long is opened again; the server sends a sign of life more often."""
_HURRIED_S = 0.2

T = TypeVar("T")
Report = Callable[[float, float | None, str], None]
"""Told how far a job is: done, total, text."""


class AsyncJob:
    """An accepted request. ``await job`` is ``await job.result()``.

    What it knows of the job is from the last answer of the server; `refresh_status`, `wait` and `result` ask again.
    """

    def __init__(self, transport: Transport, document: dict[str, Any]) -> None:
        self._transport = transport
        self._document = document

    # ------------------------------------------------------------------ what is known

    @property
    def job_id(self) -> str:
        """The job's id: equal requests have equal ids."""
        return str(self._document["job_id"])

    @property
    def status(self) -> RunState:
        """State of the current run, as last heard."""
        return RunState(self._document["status"])

    @property
    def done(self) -> bool:
        """Whether the run had ended when last heard of."""
        return self.status in TERMINAL_STATES

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far it is (``done``, ``total``, ``text``), as last heard."""
        progress = self._document.get("progress")
        return dict(progress) if progress else None

    @property
    def document(self) -> dict[str, Any]:
        """The job document of the API, as last heard; of a job from ``map``, before it is asked for, only what names it."""
        return self._document

    # ------------------------------------------------------------------ verbs

    async def refresh_status(self) -> RunState:
        """Ask the server for the state of now and return it."""
        await self._poll(0)
        return self.status

    async def wait(self, timeout: float | None = None, *, progress: bool = False) -> RunState:  # noqa: ASYNC109 - as futures
        """Wait for the run to end, however it does, and return its state.

        Raises
        ------
        WaitTimeout
            If it has not ended after `timeout` seconds; it goes on.
        """
        if progress and not self.done:
            from dask_fleet.client.bars import open_bar

            with open_bar(self.label) as bar:
                return await self.reported(self.wait(timeout), bar.update)
        async with self._limit(timeout):
            await self._wait(timeout)
        return self.status

    async def result(self, timeout: float | None = None, *, progress: bool = False) -> Any:  # noqa: ASYNC109
        """Wait for the result and return it: a table as a table, an array as an array.

        Parameters
        ----------
        timeout
            Seconds to wait; ``None`` waits for as long as it takes.
        progress
            Whether to show a progress bar (terminals and notebooks).

        Raises
        ------
        JobFailed, JobCancelled, JobExpired
            If the run ended without a result; ``failure`` says why.
        ResultExpired
            If the result was kept as long as the endpoint's ``cache`` says and is gone.
        WaitTimeout
            If there is none after `timeout` seconds; the job goes on.
        """
        if progress and not self.done:
            from dask_fleet.client.bars import open_bar

            with open_bar(self.label) as bar:
                return await self.reported(self.result(timeout), bar.update)
        async with self._limit(timeout):
            while True:
                await self._wait(timeout)
                if self.status is not RunState.SUCCEEDED:
                    raise job_error(self._document)
                value = inline_value(self._document)
                if value is not NOTHING:
                    return value
                value = await self._fetch()
                if value is not NOTHING:
                    return value

    async def reported(self, waiting: Awaitable[T], report: Report) -> T:
        """Return what `waiting` gives, telling `report` on the way how far the job is."""
        follower = asyncio.create_task(self._follow(report), name=f"{TASK_PREFIX}progress of {self.job_id}")
        try:
            return await waiting
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def save(self, path: str | Path, *, media_type: str | None = None) -> int:
        """Wait for the result and write its bytes into a file, piece by piece; return their number.

        The file appears when all its bytes are there. A broken connection is resumed where it broke.

        Parameters
        ----------
        path
            The file; one of that name is replaced.
        media_type
            The form to ask for, such as ``application/json``; the stored form if not given.
        """
        await self.wait()
        if self.status is not RunState.SUCCEEDED:
            raise job_error(self._document)
        part = await asyncio.to_thread(PartFile, Path(path))
        try:
            async for piece in self._pieces(media_type or self._stored_type()):
                await asyncio.to_thread(part.write, piece)
            return await asyncio.to_thread(part.commit)
        finally:
            part.discard()

    async def read(self, media_type: str | None = None) -> bytes:
        """Wait for the result and return its bytes.

        Parameters
        ----------
        media_type
            The form to ask for, such as ``application/json``; the stored form if not given.

        Raises
        ------
        NotAcceptable
            If the result has no such form; ``extra["available"]`` lists what there is.
        """
        await self.wait()
        if self.status is not RunState.SUCCEEDED:
            raise job_error(self._document)
        headers = {"Accept": media_type or self._stored_type()}
        return (await self._transport.request("GET", self._path("/result"), headers=headers)).content

    async def cancel(self) -> RunState:
        """Ask for the run to be cancelled and return its state; a running one ends soon after."""
        self._document = await self._transport.json("DELETE", self._path())
        return self.status

    async def retry(self) -> RunState:
        """Open the next run of a failed, cancelled or expired job and return its state.

        Raises
        ------
        Conflict
            If it succeeded: submit it with ``refresh=True`` to compute it again.
        """
        self._document = await self._transport.json("POST", self._path(":retry"))
        return self.status

    async def attempts(self) -> list[dict[str, Any]]:
        """Return all executions of the job, oldest first."""
        return list((await self._transport.json("GET", self._path("/attempts")))["attempts"])

    async def story(self) -> dict[str, Any]:
        """Return how the job came to its state, told from the ledger: each of ``["events"]`` has a sentence in ``"text"``,
        ``["standing"]`` says how it stands now, and ``["cure"]`` what to do if it failed.
        """
        return await self._transport.json("GET", self._path("/events"), headers={"Accept": "application/json"})

    @overload
    def logs(
        self, *, follow: Literal[False] = False, stream: str = "all", attempt: int | None = None, tail: int | None = None
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def logs(
        self, *, follow: Literal[True], stream: str = "all", attempt: int | None = None
    ) -> AsyncIterator[LogText]: ...

    def logs(
        self, *, follow: bool = False, stream: str = "all", attempt: int | None = None, tail: int | None = None
    ) -> Coroutine[Any, Any, str] | AsyncIterator[LogText]:
        """Return what the job wrote (``await job.logs()``), or follow it (``async for text in job.logs(follow=True)``).

        Parameters
        ----------
        follow
            Yield `LogText` of all attempts as it is written, until the run has ended; broken connections are resumed.
        stream
            ``stdout``, ``stderr``, ``log`` (records of ``logging``), or ``all``.
        attempt
            Of which attempt. The latest if not given; when following, all.
        tail
            Only so many lines at the end of each stream; not when following.
        """
        query = logs_query(stream, attempt, tail)
        if follow:
            if tail is not None:
                raise ValueError("tail and follow exclude each other")
            return followed(self.events(logs=True), stream=stream, attempt=attempt)
        return self._logs(query)

    async def _logs(self, query: dict[str, str]) -> str:
        headers = {"Accept": "text/plain"}
        response = await self._transport.request("GET", self._path("/logs"), query=query, headers=headers)
        return response.content.decode("utf-8", "replace")

    async def log_sizes(self) -> list[dict[str, Any]]:
        """Return what there is of each attempt's log: ``attempt``, and ``streams`` with their ``size`` in bytes."""
        headers = {"Accept": JSON_MEDIA_TYPE}
        return list((await self._transport.json("GET", self._path("/logs"), headers=headers))["attempts"])

    async def events(self, *, after: int | None = None, logs: bool = False) -> AsyncGenerator[JobEvent, None]:
        """Yield what has happened to the job, then what happens, until its run has ended.

        Parameters
        ----------
        after
            Leave out events up to this id. A broken stream is resumed in the same way by itself.
        logs
            Yield ``log`` events too: ``stream``, ``offset`` and ``text`` of what the attempts write.
        """
        places = LogPlaces() if logs else None
        attempt, since = 0, time.monotonic()
        while True:
            ended = False
            try:
                async for event in self._stream(after, places):
                    attempt, since = 0, time.monotonic()
                    if places is not None and event.kind == "log":
                        places.note(event)
                    if event.event_id is not None:
                        after = event.event_id
                        # The end of an earlier run is history; only that of the current one ends the story.
                        ended = event.is_terminal and event.run >= int(self._document.get("run") or 0)
                    yield event
                if ended:
                    return
                error: FleetError = ConnectionFailed(f"the event stream of job {self.job_id} ended early")
            except FleetError as exc:
                if ended:
                    return
                error = exc
            except _AllTold:
                return
            attempt += 1
            delay = self._transport.retry_delay(attempt, elapsed_s=time.monotonic() - since, error=error)
            if delay is None:
                raise error
            await asyncio.sleep(delay)

    # ------------------------------------------------------------------ shown

    @property
    def label(self) -> str:
        """Name of what was called, for people."""
        return f"{self._document.get('service')}.{self._document.get('endpoint')}"

    def __repr__(self) -> str:
        return job_text(type(self).__name__, self._document)

    def _repr_html_(self) -> str:
        return job_html(self._document)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    # ------------------------------------------------------------------ steps

    def _path(self, rest: str = "") -> str:
        return f"/v1/jobs/{self.job_id}{rest}"

    def _stored_type(self) -> str:
        return str(self._document.get("result_media_type") or "*/*")

    async def poll(self, wait_s: float) -> bool:
        """Let the server hold its answer for at most `wait_s` seconds; return whether the run has ended."""
        # The answer to a batch names a job and its state, and nothing of a result.
        if not self.done or "run" not in self._document:
            await self._poll(min(MAX_WAIT_S, math.ceil(wait_s)))
        return self.done

    async def _poll(self, wait_s: int) -> None:
        query = {"wait": str(wait_s)} if wait_s else None
        self._document = await self._transport.json("GET", self._path(), query=query, wait_s=wait_s)

    async def _wait(self, timeout: float | None) -> None:  # noqa: ASYNC109
        deadline = None if timeout is None else time.monotonic() + timeout
        asked = time.monotonic()
        while not await self.poll(LONG_POLL_S if deadline is None else max(1.0, min(LONG_POLL_S, deadline - asked))):
            if time.monotonic() - asked < _HURRIED_S:
                await asyncio.sleep(_HURRIED_S)  # a server that does not hold answers back must not be stormed
            asked = time.monotonic()

    async def _fetch(self) -> Any:
        """Return the stored result's value, or `NOTHING` if a newer run is under way after all."""
        response = await self._transport.request("GET", self._path("/result"), headers={"Accept": self._stored_type()})
        if response.status_code == 202:  # not yet
            self._document = response.json()
            return NOTHING
        media_type = response.headers.get("content-type", JSON_MEDIA_TYPE)
        return await decode_beside(media_type, response.content, etag=response.headers.get("etag", ""))

    async def _pieces(self, media_type: str) -> AsyncIterator[bytes]:
        """Yield the result's bytes, resuming with a range where a connection breaks."""
        offset, etag, attempt, since = 0, "", 0, time.monotonic()
        while True:
            headers = {"Accept": media_type}
            if offset:
                headers |= {"Range": f"bytes={offset}-", "If-Range": etag}
            try:
                async with self._transport.stream(self._path("/result"), headers=headers) as response:
                    whole = response.status_code != 206  # Partial Content
                    if offset and whole and response.headers.get("etag") != etag:
                        raise _Changed
                    etag = response.headers.get("etag", "")
                    known = offset if whole else 0  # a rendering has no ranges: what is there already comes again
                    async for piece in response.aiter_raw():
                        fresh = piece[known:]
                        known -= len(piece) - len(fresh)
                        offset += len(fresh)
                        attempt, since = 0, time.monotonic()
                        if fresh:
                            yield fresh
                    return
            except _Changed:
                raise ConnectionFailed("the result was replaced while it was read; read it again") from None
            except FleetError as exc:
                attempt += 1
                delay = self._transport.retry_delay(attempt, elapsed_s=time.monotonic() - since, error=exc)
                if delay is None or (offset and not etag):
                    raise
                await asyncio.sleep(delay)

    async def _stream(self, after: int | None, places: LogPlaces | None) -> AsyncIterator[JobEvent]:
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        query = "" if places is None else f"?logs=true&logs_after={places.query()}"
        parser = EventParser()
        path = self._path(f"/events{query}")
        async with self._transport.stream(path, headers=headers, silence_s=SILENCE_S) as response:
            if response.status_code == 204:  # No Content
                raise _AllTold
            async for line in response.aiter_lines():
                event = parser.feed(line)
                if event is not None:
                    yield event

    async def _follow(self, report: Report) -> None:
        """Tell `report` of each progress event; progress is a courtesy, so a fault here harms nothing."""
        with suppress(FleetError):
            async for event in self.events():
                if event.kind == "progress":
                    done, total, text = (event.data.get(key) for key in ("done", "total", "text"))
                    report(float(done or 0.0), float(total) if total else None, str(text or ""))

    @asynccontextmanager
    async def _limit(self, timeout: float | None) -> AsyncIterator[None]:  # noqa: ASYNC109
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                yield
        except TimeoutError as exc:
            if not limit.expired() or isinstance(exc, WaitTimeout):
                raise
            raise WaitTimeout(
                f"job {self.job_id} is {self.status} after {timeout:g} s; it goes on: client.job({self.job_id!r}) finds it",
                job_id=self.job_id,
                job_status=str(self.status),
            ) from None


class _Changed(Exception):
    """The server has other bytes now."""


class _AllTold(Exception):
    """The job has ended, and the caller has seen every event of it."""
