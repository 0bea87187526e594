"""The Dask cluster of one attempt, from the wish for it to the attempt's end, as its worker process sees it.

Who asks for it waits on an event loop, or has given its place in the pool away: an attempt that waits for its cluster, or
for what that computes, holds no slot. The scheduler's death is the end of the attempt, not of the job: no client of an
attempt ever connects again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from distributed import Client
from distributed.client import FutureCancelledError

from dask_fleet.agent.event_loop import EventLoopThread
from dask_fleet.agent.graphs import Size
from dask_fleet.agent.job_certificate import JobCertificate
from dask_fleet.agent.job_clients import ClientTable
from dask_fleet.model.placement import Placement
from dask_fleet.protocol.cluster_frames import JobCluster, NeedCluster
from dask_fleet.protocol.frames import Frame, Start

log = logging.getLogger(__name__)

_CONNECT_S = 30.0
_CLOSE_S = 5.0
_PROBE_S = 2.0
_PROGRESS_S = 0.5

Report = Callable[[float, float, str], None]


class ClusterUnavailable(RuntimeError):
    """The fleet cannot give the job the cluster it asks for."""


class ClusterLost(RuntimeError):
    """The scheduler of the job's cluster is gone; the job is run again on another one."""


class ClusterCancelled(RuntimeError):
    """The job is no longer wanted, and so is its cluster."""


class JobClient(Client):  # type: ignore[misc]
    """A client whose first scheduler is its last: a lost connection is not made again, but told."""

    def __init__(self, *args: Any, on_lost: Callable[[str], None], **options: Any) -> None:
        self._tell_lost = on_lost
        super().__init__(*args, **options)

    async def _handle_report(self) -> None:
        await super()._handle_report()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return  # the loop ends, which says nothing of the scheduler; Dask swallows the exception that told so
        if self.status == "running":  # the scheduler said goodbye
            await self._reconnect()

    async def _reconnect(self) -> None:
        self._tell_lost("its scheduler has ended")
        for state in self.futures.values():
            state.cancel(reason="scheduler-connection-lost", msg="the scheduler of the job's cluster has ended")
        self.futures.clear()
        await self._close(fast=True)


class AttemptCluster:
    """Asks for the cluster once, connects to it, and lets go of it. Every method may be called from any thread.

    Parameters
    ----------
    loop
        Where Dask's clients of this process live.
    context
        The attempt's: what a client logs is the job's.
    table
        The attempt's default clients.
    """

    def __init__(
        self,
        start: Start,
        placement: Placement,
        *,
        send: Callable[[Frame], None],
        loop: EventLoopThread,
        context: contextvars.Context,
        table: ClientTable,
    ) -> None:
        self._start = start
        self._placement = placement
        self._send = send
        self._loop = loop
        self._context = context
        self._table = table
        self._lock = threading.Lock()
        self._certificate: JobCertificate | None = None
        self._keep_not: Callable[[], None] | None = None
        """Stops renewing the certificate."""
        self._answer: concurrent.futures.Future[JobCluster] = concurrent.futures.Future()
        self._connecting: dict[asyncio.AbstractEventLoop, asyncio.Task[JobClient]] = {}
        self._clients: dict[asyncio.Task[None], tuple[asyncio.AbstractEventLoop, JobClient]] = {}
        """By the task that closes the client when it is cancelled."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._cancelled = False
        self.lost = ""
        """Why the cluster is gone, if it is."""

    # ------------------------------------------------------------------ asking

    def ask(self, size: Size | None = None) -> None:
        """Ask for the cluster, unless it was asked for before."""
        tasks, width = size or (0, 0)
        placement = self._placement

        def send(request: bytes) -> None:
            self._send(
                NeedCluster(
                    self._start.seq,
                    self._start.run,
                    self._start.attempt,
                    request,
                    tasks,
                    width,
                    placement.workers,
                    placement.threads_per_worker,
                    placement.resources,
                )
            )

        with self._lock:
            if self._certificate is not None:
                return
            certificate = self._certificate = JobCertificate(f"job {self._start.job_id}", send)
        certificate.ask()

    def answer(self, frame: JobCluster) -> None:
        """The fleet has answered; it may repeat itself, and it may say later that the cluster is gone."""
        with self._lock:
            if frame.address and self._certificate is not None:
                self._certificate.take(frame)
            if not self._answer.done():
                if frame.address:
                    self._answer.set_result(frame)
                else:
                    self._answer.set_exception(ClusterUnavailable(frame.why or "the fleet has no cluster for this job"))
                return
        if not frame.address:
            self._lose(frame.why or "its scheduler has ended")
            self._drop_clients()

    def _lose(self, why: str) -> None:
        if not (self._closed or self._cancelled or self.lost):
            self.lost = why

    # ------------------------------------------------------------------ clients

    def connect(self, size: Size | None = None) -> JobClient:
        """Return the client for threads, waiting for the cluster if need be. Not on an event loop.

        Raises
        ------
        ClusterUnavailable, ClusterLost, ClusterCancelled
            There is none (any more).
        """
        future = self._loop.submit(self.client(size), self._context.copy(), name=f"cluster-of-{self._start.seq}")
        return future.result()

    async def client(self, size: Size | None = None) -> JobClient:
        """Return the client for this event loop, as `connect`."""
        self.ask(size)
        loop = asyncio.get_running_loop()
        task = self._connecting.get(loop)
        if task is None or (task.done() and not _is_usable(task)):
            task = self._connecting[loop] = loop.create_task(
                self._connect(loop), name=f"connect-{self._start.seq}", context=self._context.copy()
            )
            task.add_done_callback(_look)
        return await asyncio.shield(task)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> JobClient:
        # Not bounded here: the attempt's own time-out ends the wait, by `cancel`.
        frame = await asyncio.shield(asyncio.wrap_future(self._answer))
        if self.lost:
            raise ClusterLost(self.lost)
        assert self._certificate is not None
        client = JobClient(
            frame.address,
            on_lost=self._lose,
            security=self._certificate.security(),
            asynchronous=True,
            set_as_default=False,
            timeout=_CONNECT_S,
        )
        try:
            await client
        except OSError as exc:
            self._lose(f"its scheduler does not answer: {exc}")
            raise ClusterLost(self.lost) from exc
        except asyncio.CancelledError:  # the loop ends
            await _close_client(client)
            raise
        holder = self._spawn(self._hold(client), f"client-of-{self._start.seq}")
        self._clients[holder] = loop, client
        self._table.add(client)
        self._keep_certificate()
        if self._closed or self._cancelled:
            self._clients.pop(holder, None)
            holder.cancel()
            await client._close(fast=True)  # noqa: SLF001
            raise ClusterCancelled("the job has ended")
        return client

    async def _hold(self, client: JobClient) -> None:
        """Close the client when the attempt ends, or its loop before: a function may have made that for one call."""
        loop = asyncio.get_running_loop()
        try:
            await loop.create_future()
        finally:
            self._clients.pop(cast("asyncio.Task[None]", asyncio.current_task()), None)
            self._connecting.pop(loop, None)
            await _close_client(client)

    def _keep_certificate(self) -> None:
        """Renew it while there are clients."""
        with self._lock:
            if self._keep_not is None and self._certificate is not None and not (self._closed or self._cancelled):
                name = f"certificate-{self._start.seq}"
                self._keep_not = self._loop.run(self._certificate.keep(), contextvars.Context(), name=name, done=_look)

    # ------------------------------------------------------------------ computing

    async def compute(self, collection: Any, size: Size | None, report: Report) -> Any:
        """Compute what the job returned, telling how many tasks are done. Runs on Dask's loop and holds no thread."""
        report(0.0, float(size.tasks if size else 0), "waiting for a cluster")
        client = await self.client(size)
        # Optimising and pickling may take long, and must know that there is a cluster.
        future = await asyncio.to_thread(client.compute, collection)
        watching = asyncio.create_task(_watch(client, report), name=f"progress-{self._start.seq}")
        try:
            return await client.gather(future, asynchronous=True)
        except concurrent.futures.CancelledError as exc:
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise ClusterLost(self.lost or "its scheduler has forgotten the graph") from exc
        finally:
            watching.cancel()

    def is_lost(self, exc: BaseException) -> bool:
        """Whether an exception of the job is due to the loss of the cluster. May take `_PROBE_S`; not on an event loop."""
        if isinstance(exc, ClusterLost):
            self._lose(str(exc))
        elif not self.lost and self._clients and isinstance(exc, (OSError, concurrent.futures.CancelledError, TimeoutError)):
            # A call may fail before the end of the stream is seen that is the sign of the scheduler's death.
            probe = self._loop.submit(self._probe(), contextvars.Context(), name=f"probe-{self._start.seq}")
            try:
                probe.result()
            except Exception as missing:  # noqa: BLE001 - whatever it is, the scheduler does not answer
                self._lose(f"its scheduler does not answer: {missing}")
        return bool(self.lost)

    async def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        for where, client in list(self._clients.values()):
            if where is loop and client.scheduler is not None:
                async with asyncio.timeout(_PROBE_S):
                    await client.scheduler.identity(n_workers=0)

    # ------------------------------------------------------------------ letting go

    def cancel(self) -> None:
        """Nobody wants the job any more: whoever waits for the cluster or for a future of it is released."""
        with self._lock:
            self._cancelled = True
            if not self._answer.done():
                self._answer.set_exception(ClusterCancelled("the job was cancelled"))
                return
        for loop, client in list(self._clients.values()):
            self._on(loop, self._begin_cancel, client)

    def _begin_cancel(self, client: JobClient) -> None:
        self._spawn(self._cancel_futures(client), f"cancel-{self._start.seq}")

    async def _cancel_futures(self, client: JobClient) -> None:
        if client.status == "running" and client.futures:
            from distributed import Future

            futures = [Future(key, client) for key in list(client.futures)]
            async with asyncio.timeout(_CLOSE_S):
                await client.cancel(futures, asynchronous=True, force=True)

    def close(self) -> None:
        """The attempt has ended."""
        with self._lock:
            self._closed = True
            if not self._answer.done():
                self._answer.set_exception(ClusterCancelled("the job has ended"))
        self._drop_clients()

    def _drop_clients(self) -> None:
        with self._lock:
            keep_not, self._keep_not = self._keep_not, None
        if keep_not is not None:
            keep_not()
        for holder, (loop, _) in list(self._clients.items()):
            self._on(loop, holder.cancel)
        self._clients.clear()

    @staticmethod
    def _on(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
        with suppress(RuntimeError):  # it is closed: a function's own, which did not end its tasks before
            loop.call_soon_threadsafe(call, *args)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine on the loop of this thread."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look)
        return task


async def _close_client(client: JobClient) -> None:
    for state in client.futures.values():
        state.cancel(reason="cluster-closed", msg="the job's cluster is closed")
    async with asyncio.timeout(_CLOSE_S):
        await client._close(fast=True)  # noqa: SLF001


def _is_usable(task: asyncio.Task[JobClient]) -> bool:
    """Whether the client of a finished task is there and open; a job may close it, and ask again."""
    return not task.cancelled() and (task.exception() is not None or task.result().status not in ("closed", "closing"))


def _look(task: asyncio.Task[Any]) -> None:
    """Look at the exception of a task that may have nobody else to look at it."""
    if not task.cancelled() and (exc := task.exception()) is not None:
        log.debug("%s: %r", task.get_name(), exc)


async def _watch(client: JobClient, report: Report) -> None:
    """Report how many tasks of the cluster's graphs are done, until cancelled."""
    while True:
        await asyncio.sleep(_PROGRESS_S)
        try:
            done, total = cast("tuple[int, int]", await client.run_on_scheduler(count_tasks))
        except (OSError, FutureCancelledError):
            return
        if total:
            report(float(done), float(total), "tasks")


def count_tasks(dask_scheduler: Any) -> tuple[int, int]:
    """Return how many tasks are done and how many there are; runs in the scheduler."""
    waiting = done = 0
    for group in dask_scheduler.task_groups.values():
        for state, count in group.states.items():
            if state in {"waiting", "queued", "no-worker", "processing"}:
                waiting += count
            else:
                done += count
    return done, done + waiting
