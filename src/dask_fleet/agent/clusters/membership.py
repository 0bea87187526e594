"""The clusters that one worker process is a member of.

All Dask workers of a process live on one event loop, in a thread of its own, and run their tasks on one `FairPool`. Each
lives in a context of its own (`contextvars`), so that a client which a task makes or asks for is the default client of this
membership's tasks only; see `job_clients`.

What memberships share, because it belongs to the process: memory, Dask's configuration (see `Join.config`), the environment,
the working folder, ``sys.path``, modules, and the thread on which Dask (de)serialises what is larger than 10 MiB.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import dask

from dask_fleet.agent import job_clients
from dask_fleet.agent.clusters import dask_config
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.fair_pool import FairPool, FairThreadPoolExecutor
from dask_fleet.agent.clusters.frames import Join, Joined, Leave, Left, MembershipBound, Released
from dask_fleet.agent.clusters.member_worker import MemberWorker, Restarter, forget_handlers
from dask_fleet.agent.clusters.security import MemberSecurity
from dask_fleet.agent.dask_runtime import DaskRuntime
from dask_fleet.agent.event_loop import EventLoopThread
from dask_fleet.agent.pool import PlacePool
from dask_fleet.protocol.frames import Frame

log = logging.getLogger(__name__)

_WIPE_AGAIN_S = (0.05, 0.2, 1.0)
"""Waits between the tries to remove a scratch folder."""


class Memberships:
    """All memberships of this process.

    Each `Join` is answered by `Joined` or a failed `Left`; whatever ends a membership (`Leave`, the scheduler's end or
    death, a client that retires the worker), `Left` follows, and `Released` when none of its tasks holds a thread any more.

    Parameters
    ----------
    places
        The threads of the process; those of its jobs as well.
    send
        Takes the frames for the agent; called from any thread.
    """

    def __init__(self, places: PlacePool, send: Callable[[Frame], None]) -> None:
        self._pool = FairPool(places)
        self._send = send
        self._loop = EventLoopThread()
        self._members: dict[str, _Membership] = {}
        dask_config.set_member_defaults()
        DaskRuntime(places).install()

    def handle(self, frame: MembershipBound) -> None:
        """Do what the agent asks for; returns at once. Call it from one thread only."""
        if isinstance(frame, Join):
            if frame.membership not in self._members:
                member = self._members[frame.membership] = _Membership(frame, self._pool, self._send, self._forget)
                # The Dask worker and all its handlers inherit this context, and from them the tasks.
                context = contextvars.Context()
                context.run(job_clients.enter_job)
                self._loop.run(member.live(), context, name=f"membership-{frame.membership}", done=_log_failure)
            return
        member_id = frame.membership if isinstance(frame, Leave) else frame.member
        known = self._members.get(member_id)
        if isinstance(frame, Leave):
            if known is None:
                self._send(Left(frame.membership, "not a member", 0))
                self._send(Released(frame.membership))
            else:
                self._loop.run(known.leave(), contextvars.Context(), name=f"leave-{member_id}", done=_log_failure)
        elif known is not None:
            renewal = known.renew(frame.credentials)
            self._loop.run(renewal, contextvars.Context(), name=f"renew-{member_id}", done=_log_failure)

    def _forget(self, membership: str) -> None:
        self._members.pop(membership, None)


class _Unanswered(Exception):
    """The scheduler has not answered a worker that was ready."""


class _Membership:
    """One membership, on the event loop's thread; over a restart by a client it has one Dask worker after the other."""

    def __init__(
        self, join: Join, pool: FairPool, send: Callable[[Frame], None], forget: Callable[[str], None]
    ) -> None:
        self._join = join
        self._pool = pool
        self._send = send
        self._forget = forget
        self.security = MemberSecurity(join.credentials)
        self._scratch = Path(join.local_directory) / "dask-scratch-space" / f"membership-{join.membership}"
        self._worker: MemberWorker | None = None
        self._restarter: Restarter | None = None
        self._views: list[FairThreadPoolExecutor] = []
        self._leaving = asyncio.Event()
        self._restarts = 0
        self._unreleased = 0

    async def live(self) -> None:
        """Join, stay until the end, and clean up."""
        reason, failed, unanswered = "", True, False
        try:
            await self._start_restarter()
            while True:
                restarts = self._restarts
                worker = self._make_worker()
                if not await self._started(worker):
                    break
                failed = False
                self._send(Joined(self._join.membership, worker.address))
                await self._unless_leaving(worker.finished())
                if self._restarts == restarts or self._leaving.is_set():
                    break
            reason = "left" if self._leaving.is_set() else worker.close_reason
            failed = False
        except _Unanswered as exc:
            reason, unanswered = str(exc), True
        except Exception as exc:  # noqa: BLE001 - whatever it is, the agent is told
            cause = exc.__cause__ or exc  # Dask's own says only that it failed to start
            reason = f"{type(cause).__name__}: {cause}"
        finally:
            await self._clean_up()
        busy = sum(view.busy for view in self._views)
        self._send(Left(self._join.membership, reason, busy, failed, unanswered))
        self._release()

    async def leave(self) -> None:
        """Stop being a worker, or becoming one."""
        self._leaving.set()

    async def renew(self, credentials: Credentials) -> None:
        """Show another certificate from now on."""
        self.security.renew(credentials)

    async def restart(self, reason: str) -> None:
        """End the worker, the scheduler having taken note, so that the next one joins. What its tasks hold stays held."""
        worker = self._worker
        if worker is None or self._leaving.is_set():
            return
        self._restarts += 1
        await worker.scheduler.unregister(address=worker.address, stimulus_id=reason)
        await worker.close(reason=reason)

    async def _started(self, worker: MemberWorker) -> bool:
        """Wait until the scheduler has taken it, but no longer than until the membership is to end; whether it has.

        What is the worker's own part has a time-out. Its scheduler may be busy for as long as a large graph takes it: asking
        on is what helps then, while a start from the beginning would only come later.
        """
        join = self._join
        waits = [
            asyncio.create_task(worker.start(), name="start"),
            asyncio.create_task(self._leaving.wait(), name="leaving"),
            asyncio.create_task(worker.prepared.wait(), name="prepared"),
        ]
        start, leaving, prepared = waits
        try:
            await asyncio.wait(waits, timeout=join.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not (start.done() or leaving.done() or prepared.done()):
                raise TimeoutError(f"it was not ready within {join.timeout_s:g} s; does a preload or a plug-in wait?")
            await self._answered(worker, start, leaving)
            if start.done():
                await start
            return start.done()
        finally:
            for task in waits:
                task.cancel()

    async def _answered(self, worker: MemberWorker, start: asyncio.Task[Any], leaving: asyncio.Task[Any]) -> None:
        """Wait until the scheduler has answered or the membership is to end."""
        join, deadline = self._join, time.monotonic() + self._join.answer_s
        while True:
            left_s = deadline - time.monotonic()
            waits_s = max(0.0, min(join.probe_s, left_s))
            done, _ = await asyncio.wait([start, leaving], timeout=waits_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            if left_s <= 0:
                raise _Unanswered(f"its scheduler at {join.scheduler} did not answer it within {join.answer_s:g} s")
            probe = asyncio.create_task(worker.refusal(join.probe_s), name="probe")
            try:
                await asyncio.wait([start, leaving, probe], return_when=asyncio.FIRST_COMPLETED)
            finally:
                probe.cancel()
            if not start.done() and not leaving.done() and (refusal := probe.result()):
                raise ConnectionRefusedError(f"it and its scheduler do not accept each other's certificates: {refusal}")

    async def _unless_leaving(self, step: Coroutine[Any, Any, Any]) -> bool:
        """Wait for `step`, but no longer than until the membership is to end; whether it is over."""
        leaving = asyncio.create_task(self._leaving.wait(), name="leaving")
        task = asyncio.create_task(step, name="step")
        try:
            await asyncio.wait([leaving, task], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            leaving.cancel()
            task.cancel()

    async def _start_restarter(self) -> None:
        arguments = self.security.get_connection_args("worker")
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._restarter = Restarter(self.restart, arguments, str(self._scratch))
        await self._restarter.listen(f"tls://{self._join.host}:0", **self.security.get_listen_args("worker"))
        await self._restarter

    def _make_worker(self) -> MemberWorker:
        join = self._join
        assert self._restarter is not None
        view = self._pool.view(join.nthreads)
        self._views.append(view)
        # Set while the worker reads it, without an await in between: Dask's configuration belongs to the process.
        with dask.config.set(dask_config.flat(join.config)):
            worker = MemberWorker(
                join.scheduler,
                name=join.name,
                nthreads=join.nthreads,
                memory_limit=join.memory_limit or None,
                resources=join.resources or None,
                local_directory=str(self._scratch),
                security=self.security,
                protocol="tls",
                host=join.host,
                executor={"default": view},
                nanny=self._restarter.address,
                preload=join.preloads or None,
                death_timeout=None,  # see `_started`
            )
        self._worker = worker
        return worker

    async def _clean_up(self) -> None:
        if self._worker is not None:
            await self._worker.close(reason="left")
        if self._restarter is not None:
            await self._restarter.close()
            forget_handlers()
        await _wipe(self._scratch)

    def _release(self) -> None:
        """Close the views and say so when the last task has ended."""
        loop = asyncio.get_running_loop()
        self._unreleased = len(self._views) or 1

        def one_idle() -> None:
            self._unreleased -= 1
            if self._unreleased == 0:
                self._forget(self._join.membership)
                self._send(Released(self._join.membership))

        def idle() -> None:
            loop.call_soon_threadsafe(one_idle)

        for view in self._views:
            view.close(idle)
        if not self._views:
            one_idle()
        self._worker = self._restarter = None


async def _wipe(folder: Path) -> None:
    """Remove a folder in which Dask's own cleaning, or a task that has not ended, may still be at work."""
    for wait_s in _WIPE_AGAIN_S:
        if await asyncio.to_thread(_removed, folder):
            return
        await asyncio.sleep(wait_s)
    log.warning("a scratch folder is left", extra={"action": "scratch_left", "folder": str(folder)})


def _removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        log.error("a membership failed", exc_info=exc)
