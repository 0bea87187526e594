"""Runs attempts in a worker process: look up, validate, call, encode, report."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_fleet.agent import failures, job_clients
from dask_fleet.agent.dask_runtime import DaskRuntime, GraphCancelled, GraphTooLarge, is_graph
from dask_fleet.agent.event_loop import EventLoopThread
from dask_fleet.agent.graphs import Size
from dask_fleet.agent.output import AttemptOutput, Recorder
from dask_fleet.agent.pool import PlacePool, Stay
from dask_fleet.codecs.encode import ResultTooLarge, encode
from dask_fleet.model.errors import InvalidParameters
from dask_fleet.model.failure import Blame, Cause, Failure
from dask_fleet.model.placement import Placement, PlacementMode
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.cluster_frames import JobCluster
from dask_fleet.protocol.frames import SPOOL_ABOVE_BYTES, Cancel, Frame, Outcome, Progress, Start
from dask_fleet.services.context import JobContext

if TYPE_CHECKING:
    from dask_fleet.agent.job_cluster import AttemptCluster

log = logging.getLogger(__name__)

Send = Callable[[Frame], None]


_NOWHERE = Placement()


class _Running:
    """One attempt in this process."""

    __slots__ = ("cancel_task", "cancelled", "cluster", "job", "open_cluster", "output", "placement", "pool",
                 "start", "stay")  # fmt: skip

    def __init__(
        self,
        start: Start,
        output: AttemptOutput,
        report: Callable[[float, float, str], None],
        pool: PlacePool,
        open_cluster: Callable[[_Running], AttemptCluster],
    ) -> None:
        self.start = start
        self.output = output
        self.pool = pool
        self.open_cluster = open_cluster
        self.cancelled = False
        self.cancel_task: Callable[[], None] | None = None
        self.placement = _NOWHERE
        self.stay: Stay | None = None
        """The place in which its function is called; outdated once that call has ended."""
        self.cluster: AttemptCluster | None = None
        """Of its own, once it has needed one."""
        self.job = JobContext(
            job_id=start.job_id, attempt=start.attempt, report=report, is_cancelled=self.is_cancelled, client=self.client
        )

    def is_cancelled(self) -> bool:
        return self.cancelled

    def client(self) -> Any:
        """`dask_fleet.get_client`, called by the job's code in a thread or on an event loop."""
        if self.placement.mode is PlacementMode.WORKER:
            raise RuntimeError(
                "this endpoint says placement='worker', which forbids it a cluster; say placement='auto' or 'cluster'"
            )
        if job_clients.on_event_loop():
            self._leave()  # the loop may run within a function that waits for it in a place
            return self.open_cluster(self).client()
        return self.connect()

    def connect(self, size: Size | None = None) -> Any:
        """Wait for the cluster without holding a place, now and for the rest of the call."""
        self._leave()
        return self.open_cluster(self).connect(size)

    def _leave(self) -> None:
        """Give away the place of the function, which may wait for whoever asks here, and that of the thread that asks."""
        if self.stay is not None:
            self.pool.leave(self.stay)
        self.pool.leave()


class Runner:
    """All attempts of one worker process. `send` must be callable from any thread."""

    def __init__(self, *, send: Send, pool: PlacePool, spool: Path, spool_token: str, recorder: Recorder,
                 worker: str) -> None:  # fmt: skip
        self._send = send
        self._recorder = recorder
        self._pool = pool
        self._spool = spool
        self._spool_token = spool_token
        self._worker = worker
        self._loop = EventLoopThread()
        self._dask_loop = EventLoopThread("dask-loop")
        """For Dask's clients: a coroutine of a job that blocks its loop must not stop them."""
        self._clusters_lock = threading.Lock()
        self._dask = DaskRuntime(pool)
        self._endpoints: dict[tuple[str, str, str], Any] = {}
        self._running: dict[tuple[int, int], _Running] = {}
        self._clean = contextvars.Context()

    def serve(self, endpoints: dict[tuple[str, str, str], Any]) -> None:
        """Take the endpoints to run, by service, version and name; called once, before the first attempt."""
        self._endpoints = endpoints
        self._dask.install()

    def start(self, start: Start) -> None:
        """Run an attempt as soon as a place is free."""
        output = self._recorder.output(start.seq, start.run, start.attempt)
        running = self._running[start.seq, start.attempt] = _Running(
            start, output, partial(self._report, start), self._pool, self._open_cluster
        )
        # Each attempt has a context of its own, so that no context variable of one job is seen by the next.
        context = self._clean.copy()
        self._pool.run(partial(context.run, self._call, running, context))

    def cancel(self, cancel: Cancel) -> None:
        """Ask an attempt to end: `dask_fleet.cancelled` says so from now on, and a coroutine is cancelled."""
        running = self._running.get((cancel.seq, cancel.attempt))
        if running is not None:
            running.cancelled = True
            if running.cancel_task is not None:
                running.cancel_task()
            if running.cluster is not None:
                running.cluster.cancel()

    def job_cluster(self, frame: JobCluster) -> None:
        """Pass on what the fleet says of an attempt's cluster."""
        running = self._running.get((frame.seq, frame.attempt))
        if running is not None and running.cluster is not None:
            running.cluster.answer(frame)

    def _open_cluster(self, running: _Running) -> AttemptCluster:
        """Return the attempt's cluster; nobody is asked for it yet."""
        with self._clusters_lock:
            if running.cluster is None:
                from dask_fleet.agent.job_cluster import AttemptCluster

                running.cluster = AttemptCluster(
                    running.start,
                    running.placement,
                    send=self._send,
                    loop=self._dask_loop,
                    context=contextvars.copy_context(),
                    table=job_clients.table(),
                )
                if running.cancelled:
                    running.cluster.cancel()
            return running.cluster

    # ------------------------------------------------------------------ the walk of one attempt

    def _call(self, running: _Running, context: contextvars.Context) -> None:
        start = running.start
        if running.is_cancelled():
            self._end(running, AttemptState.CANCELLED)
            return
        running.stay = self._pool.stay()
        job_clients.enter_job(running)
        running.output.enter()
        running.job.__enter__()  # never left: the context it is entered in ends with the attempt
        try:
            endpoint = self._endpoints[start.service, start.version, start.endpoint]
        except KeyError:
            self._fail(running, Failure.bounded(Cause.SERVICE_UNAVAILABLE, self._missing(start)))
            return
        running.placement = endpoint.placement
        try:
            arguments = endpoint.call_arguments(start.params)
        except InvalidParameters as exc:
            self._fail(running, failures.of_invalid_parameters(exc))
            return
        except BaseException as exc:  # noqa: BLE001 - a validator is user code
            self._fail(running, failures.of_exception(exc))
            return
        try:
            value = endpoint.function(**arguments)
        except BaseException as exc:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of user code end the job, not us
            self._raised(running, exc)
            return
        if inspect.iscoroutine(value):
            context = context.copy()  # this thread is still within the one it was called in
            running.cancel_task = self._loop.run(
                value, context, name=f"job-{start.seq}", done=partial(self._awaited, running, context)
            )
            if running.cancelled:
                running.cancel_task()
            return
        self._finish(running, context, value)

    def _awaited(self, running: _Running, context: contextvars.Context, task: asyncio.Task[Any]) -> None:
        """On the event loop's thread: hand the rest back to the pool, for encoding may take long."""
        # The task still holds its context until this callback is over; a copy can be entered at once.
        again = context.copy()
        exc = asyncio.CancelledError("the coroutine was cancelled") if task.cancelled() else task.exception()
        if exc is None:
            self._pool.run(partial(again.run, self._finish, running, again, task.result()))
        elif running.cluster is not None:
            self._pool.run(partial(again.run, self._raised, running, exc))
        else:
            self._fail(running, failures.of_exception(exc))

    def _raised(self, running: _Running, exc: BaseException) -> None:
        """The function or its graph has raised; find out whose fault it is."""
        cluster = running.cluster
        if cluster is not None and not running.cancelled:
            if cluster.is_lost(exc):
                text = f"the cluster of the job was lost: {cluster.lost}"
                self._end(running, AttemptState.LOST, failure=Failure.bounded(Cause.CLUSTER_LOST, text))
                return
            told = failures.of_cluster(exc)
            if told is not None:
                died = told.cause.is_death
                state = AttemptState.LOST if died else AttemptState.FAILED
                self._end(running, state, failure=told, blame=Blame.ALONE if died else Blame.NONE)
                return
        self._fail(running, failures.of_exception(exc))

    def _finish(self, running: _Running, context: contextvars.Context, value: object) -> None:
        try:
            if is_graph(value):
                # The function's place is free again: the graph gets them all, coordinated by a thread that counts for none.
                threading.Thread(
                    target=context.copy().run, args=(self._compute, running, context, value),
                    name=f"graph-{running.start.seq}", daemon=True,
                ).start()
                return
        except BaseException as exc:  # noqa: BLE001 - a collection is asked for its graph, and may be the author's own
            self._fail(running, failures.of_exception(exc))
            return
        self._deliver(running, value)

    def _compute(self, running: _Running, context: contextvars.Context, value: object) -> None:
        placement = running.placement
        limit = placement.local_tasks if placement.mode is PlacementMode.AUTO else None
        try:
            while is_graph(value):
                # A client that the function made itself computes what it returns.
                own = job_clients.own_client() is not None
                if running.cluster is not None or (not own and placement.mode is PlacementMode.CLUSTER):
                    self._compute_on_cluster(running, context, value, None)
                    return
                value = self._dask.compute(
                    value, report=running.job.progress, is_cancelled=running.is_cancelled, limit=limit
                )
        except GraphTooLarge as exc:
            self._compute_on_cluster(running, context, value, exc.size)
        except GraphCancelled:
            self._end(running, AttemptState.CANCELLED)
        except BaseException as exc:  # noqa: BLE001 - tasks are user code
            self._raised(running, exc)
        else:
            self._deliver(running, value)

    def _compute_on_cluster(
        self, running: _Running, context: contextvars.Context, value: object, size: Size | None
    ) -> None:
        """Let the job's cluster compute what the function returned; nothing but a coroutine waits for it."""
        cluster = self._open_cluster(running)
        running.cancel_task = self._dask_loop.run(
            cluster.compute(value, size, running.job.progress), context.copy(), name=f"graph-{running.start.seq}",
            done=partial(self._awaited, running, context),
        )  # fmt: skip
        if running.cancelled:
            running.cancel_task()

    def _deliver(self, running: _Running, value: object) -> None:
        start = running.start
        try:
            encoded = encode(value, max_bytes=start.max_result_bytes)
            data = encoded.data
            size = memoryview(data).nbytes
            digest = hashlib.sha256(data).hexdigest()
            spool: str | None = None
            body: bytes | None = None
            if size <= SPOOL_ABOVE_BYTES:
                body = data if isinstance(data, bytes) else bytes(data)
            else:
                spool = self._write_spool(data)
        except ResultTooLarge as exc:
            cure = "return less, or raise the endpoint's max_result"
            self._fail(running, Failure.bounded(Cause.RESULT_TOO_LARGE, f"{exc}; {cure}"))
        except (TypeError, ValueError) as exc:
            self._fail(running, Failure.bounded(Cause.RESULT_NOT_SERIALIZABLE, str(exc), type=type(exc).__name__))
        except OSError as exc:
            self._fail(running, Failure.bounded(Cause.RESULT_STORE_FULL, f"the result could not be written: {exc}"))
        except BaseException as exc:  # noqa: BLE001 - encoding calls methods of user classes
            self._fail(running, failures.of_exception(exc))
        else:
            self._end(
                running, AttemptState.SUCCEEDED, media_type=encoded.media_type, digest=digest, size=size, body=body,
                spool=spool, json=encoded.json,
            )

    # ------------------------------------------------------------------ reports

    def _fail(self, running: _Running, failure: Failure) -> None:
        self._end(running, AttemptState.FAILED, failure=failure)

    def _end(self, running: _Running, state: AttemptState, **more: Any) -> None:
        start = running.start
        self._running.pop((start.seq, start.attempt), None)
        running.job.flush()
        if running.cluster is not None:
            running.cluster.close()
        running.output.close()  # whoever learns that it has ended finds all that it wrote
        self._send(
            Outcome(
                start.seq,
                start.run,
                start.attempt,
                state,
                self._worker,
                time.time_ns() // 1000,
                log_bytes=running.output.written,
                **more,
            )
        )

    def _report(self, start: Start, done: float, total: float, text: str) -> None:
        self._send(Progress(start.seq, start.run, start.attempt, done, total, text))

    def _missing(self, start: Start) -> str:
        return f"this worker process has not loaded {start.service}.{start.endpoint} of version {start.version}"

    def _write_spool(self, data: bytes | memoryview) -> str:
        """Write the bytes durably under a fresh name and return it; what cannot be completed is removed."""
        name = self._spool_token + secrets.token_hex(12)
        path = self._spool / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                rest = memoryview(data).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            folder = os.open(self._spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return name

