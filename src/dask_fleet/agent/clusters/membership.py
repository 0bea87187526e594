"""The clusters that one worker process is a member of.

All Dask workers of a process live on one event loop, in a thread of its own, and run their tasks on one `FairPool`. Each
lives in a context of its own (`contextvars`), so that a client which a task makes or asks for is the default client of this
membership's tasks only; see `job_clients`.

What memberships share, because it belongs to the process: memory, Dask's configuration (see `Join.config`), the environment,
the working folder, ``sys.path``, modules, and the thread on which Dask (de)serialises what is larger than 10 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import dask

from dask_fleet.agent import job_clients
from dask_fleet.agent.clusters import dask_config
from dask_fleet.agent.clusters.asking import Unanswered, answered
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.fair_pool import FairPool, FairThreadPoolExecutor
from dask_fleet.agent.clusters.frames import Join, Joined, Leave, Left, MembershipBound, Released, Stragglers
from dask_fleet.agent.clusters.member_worker import MemberWorker, forget_handlers
from dask_fleet.agent.clusters.names import dask_name
from dask_fleet.agent.clusters.nanny import MemberNanny
from dask_fleet.agent.clusters.security import MemberSecurity
from dask_fleet.agent.dask_runtime import DaskRuntime
from dask_fleet.agent.event_loop import EventLoopThread
from dask_fleet.agent.pool import PlacePool
from dask_fleet.model.dask_configuration import flat
from dask_fleet.protocol.frames import Frame

log = logging.getLogger(__name__)

_WIPE_AGAIN_S = (0.05, 0.2, 1.0)
"""Waits between the tries to remove a scratch folder."""
_END_S = 5.0
"""What a step of ending a worker for a restart may take; what has not ended then ends with its process, or later."""


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


class _Membership:
    """One membership, on the event loop's thread.

    Restarted by a client, one in a shared process has one Dask worker after the other; one in a fresh process waits for the
    end of that, and the agent lets another process join in its place.
    """

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
        self._nanny: MemberNanny | None = None
        self._view: FairThreadPoolExecutor | None = None
        self._old_views: list[FairThreadPoolExecutor] = []
        """Of workers that have ended, until the last of their tasks has."""
        self._leaving = asyncio.Event()
        self._restart_wanted = False
        self._told = asyncio.Event()
        """Whether who asked for the restart knows that the worker has ended."""
        self._left = False

    async def live(self) -> None:
        """Join, stay until the end, and clean up."""
        reason, failed, unanswered = "left", True, False
        try:
            nanny = await self._start_nanny()
            while True:
                self._restart_wanted = False
                self._told.clear()
                if not await self._begun(nanny):
                    break
                worker = self._make_worker(nanny)
                if not await self._started(worker):
                    break
                await nanny.ready()
                failed = False
                self._send(Joined(self._join.membership, worker.address))
                await self._unless_leaving(worker.finished())
                if not self._restart_wanted or self._leaving.is_set():
                    break
                await self._until_told()
                if self._join.fresh:
                    self._send(Left(self._join.membership, "restarted by a client", self._busy(), restart=True))
                    return  # the rest goes with the process
                self._replace_view()
            reason = "left" if self._leaving.is_set() else worker.close_reason
            failed = False
        except Unanswered as exc:
            reason, unanswered = str(exc), True
        except Exception as exc:  # noqa: BLE001 - whatever it is, the agent is told
            cause = exc.__cause__ or exc  # Dask's own says only that it failed to start
            reason = f"{type(cause).__name__}: {cause}"
        await self._end(reason, failed=failed, unanswered=unanswered)

    async def _end(self, reason: str, *, failed: bool, unanswered: bool) -> None:
        """Clean up, and say so."""
        try:
            await self._clean_up()
        except Exception:
            log.exception("a membership was not cleaned up")
        self._send(Left(self._join.membership, reason, self._busy(), failed, unanswered))
        self._release()

    async def leave(self) -> None:
        """Stop being a worker, or becoming one."""
        self._leaving.set()

    async def renew(self, credentials: Credentials) -> None:
        """Show another certificate from now on."""
        self.security.renew(credentials)

    async def _end_worker(self, reason: str) -> None:
        """End the worker, the scheduler having taken note, so that the next one can join. What its tasks hold stays held."""
        worker = self._worker
        if worker is None or self._leaving.is_set():
            return
        self._restart_wanted = True
        try:
            async with asyncio.timeout(_END_S):
                await worker.scheduler.unregister(address=worker.address, stimulus_id=reason, expected=True)
        except Exception as exc:  # noqa: BLE001 - it will see that the worker is gone
            log.debug("a worker's end was not announced: %r", exc)
        await worker.close(timeout=_END_S, reason=reason)

    async def _until_told(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._told.wait()

    def _replace_view(self) -> None:
        """Let the next worker have all its threads, whatever tasks of before still hold."""
        view = self._view
        assert view is not None
        self._close_view()
        view.replace()
        if busy := self._busy():
            self._send(Stragglers(self._join.membership, busy))

    def _close_view(self) -> None:
        loop, view = asyncio.get_running_loop(), self._view
        if view is not None:
            self._view = None
            self._old_views.append(view)

            def ended() -> None:
                loop.call_soon_threadsafe(self._tasks_ended, view)

            view.close(ended)

    def _tasks_ended(self, view: FairThreadPoolExecutor) -> None:
        self._old_views.remove(view)
        if self._left:
            self._release_if_idle()
        elif not self._old_views:
            self._send(Stragglers(self._join.membership, 0))

    def _busy(self) -> int:
        """Threads that tasks hold, those of before a restart included."""
        return sum(view.busy for view in self._old_views) + (self._view.busy if self._view is not None else 0)

    async def _begun(self, nanny: MemberNanny) -> bool:
        """Let the nanny fetch plug-ins and set them up, but only until the membership is to end; whether it has."""
        if not self._join.fresh:
            return True
        asking = asyncio.create_task(nanny.ask(), name="ask-for-plugins")
        leaving = asyncio.create_task(self._leaving.wait(), name="leaving")
        try:
            await answered(self._join, self._connection_args, asking, leaving)
            return asking.done() and await self._unless_leaving(nanny.set_up(asking.result()))
        finally:
            asking.cancel()
            leaving.cancel()

    def _connection_args(self) -> dict[str, Any]:
        args: dict[str, Any] = self.security.get_connection_args("worker")
        return args

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
            await answered(join, self._connection_args, start, leaving)
            if start.done():
                await start
            return start.done()
        finally:
            for task in waits:
                task.cancel()

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

    async def _start_nanny(self) -> MemberNanny:
        self._scratch.mkdir(parents=True, exist_ok=True)
        nanny = self._nanny = MemberNanny(
            self._join, self.security, str(self._scratch), end_worker=self._end_worker, go_on=self._told.set
        )
        await nanny.listen(f"tls://{self._join.host}:0", **self.security.get_listen_args("worker"))
        await nanny
        return nanny

    def _make_worker(self, nanny: MemberNanny) -> MemberWorker:
        join = self._join
        view = self._view = self._pool.view(join.nthreads)
        # Set while the worker reads it, without an await in between: Dask's configuration belongs to the process.
        with dask.config.set(flat(join.config)):
            worker = MemberWorker(
                join.scheduler,
                name=dask_name(join.name),
                nthreads=join.nthreads,
                memory_limit=join.memory_limit or None,
                resources=join.resources or None,
                local_directory=str(self._scratch),
                security=self.security,
                protocol="tls",
                host=join.host,
                executor={"default": view},
                nanny=nanny.address,
                preload=join.preloads or None,
                death_timeout=None,  # see `_started`
            )
        self._worker = nanny.worker = worker
        return worker

    async def _clean_up(self) -> None:
        if self._worker is not None:
            await self._worker.close(reason="left")
        if self._nanny is not None:
            await self._nanny.tear_down()
            forget_handlers()
        await _wipe(self._scratch)

    def _release(self) -> None:
        """Say so when the last task has ended."""
        self._left = True
        self._close_view()
        self._release_if_idle()
        self._worker = self._nanny = None

    def _release_if_idle(self) -> None:
        if not self._old_views:
            self._forget(self._join.membership)
            self._send(Released(self._join.membership))


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
