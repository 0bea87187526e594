"""The main of a scheduler process: a spare that has Dask in memory, then the one scheduler of one cluster.

One scheduler a process, because a scheduler with a large graph does not return to its event loop for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

from dask_fleet.agent.clusters.frames import (
    Close,
    Closed,
    DataMoved,
    Deaf,
    LimitIdle,
    MoveData,
    Open,
    Opened,
    OpenFailed,
    Renew,
    SchedulerState,
    Spare,
    decode_for_scheduler,
)
from dask_fleet.agent.clusters.names import dask_name
from dask_fleet.agent.framing import RECEIVE_BYTES, FrameBuffer
from dask_fleet.protocol.frames import Frame, encode_prefixed
from dask_fleet.services.provided import provide

log = logging.getLogger(__name__)

_CLOSE_S = 4.0
_REHEARSE_AFTER_S, _REHEARSE_AT_MOST_AFTER_S = 0.1, 5.0
"""First and longest time between two looks at whether all workers have come."""
_KEEP_ALIVE_S = 10.0
"""A state that has not changed is repeated that often."""


def main(channel: socket.socket, stray: Connection, folder: str = "") -> None:
    """Serve the agent at the other end of `channel` until the cluster ends or the agent is gone. Does not return.

    `stray` becomes standard output and error, which the agent bounds.
    """
    from dask_fleet.agent.worker_process import settle

    settle(folder, stray, name="fleet-scheduler")
    code = 0
    try:
        asyncio.run(_Process(channel).run())
    except (ConnectionError, EOFError):
        code = 0  # the agent is gone, and with it everyone who could want this cluster
    except BaseException:
        log.exception("the scheduler process failed")
        code = 70
    sys.stdout.flush()
    os._exit(code)  # not sys.exit: preloads may have left threads and exit handlers


class _Process:
    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)  # noqa: FBT003
        self._channel = channel
        self._frames = FrameBuffer(decode_for_scheduler)
        self._scheduler: Any = None
        self._cluster = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving: set[str] = set()
        """Names of the workers whose data is on its way: asked for again, they are not retired twice."""

    async def run(self) -> None:
        """Wait to be opened, then serve until the end."""
        versions = _warm_up()
        await self._send(Spare(versions))
        opened: Open | None = None
        while opened is None:
            for frame in await self._receive():
                if isinstance(frame, Open):
                    opened = frame
                elif isinstance(frame, Close):
                    await self._send(Closed("", frame.reason))
                    return
        self._cluster = opened.cluster
        try:
            await self._open(opened)
        except Exception as exc:  # noqa: BLE001 - preloads and plug-ins are user code
            cause = exc.__cause__ or exc  # Dask's own says only that it failed
            await self._send(OpenFailed(opened.cluster, f"{type(cause).__name__}: {cause}"))
            return
        await self._serve(opened)

    async def _open(self, request: Open) -> None:
        from dask_fleet.agent.clusters import fleet_scheduler

        self._scheduler = fleet_scheduler.make(request)
        await self._scheduler
        await self._send(Opened(request.cluster, self._scheduler.address, self._scheduler.dashboard_url))

    async def _serve(self, request: Open) -> None:
        provide(request.targets)
        scheduler = self._scheduler
        scheduler.on_deaf = self._deaf
        tasks = [
            asyncio.create_task(self._listen(), name="frames"),
            asyncio.create_task(self._report(request.report_s), name="report"),
            asyncio.create_task(scheduler.finished(), name="scheduler"),
        ]
        rehearsal = asyncio.create_task(self._rehearse(), name="rehearsal")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = tasks[0].result() if tasks[0] in done else scheduler.close_reason
            for task in done:
                task.result()
        finally:
            for task in (*tasks, rehearsal):
                task.cancel()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await scheduler.close(reason=reason)
        except Exception:  # the process ends now, which closes everything
            log.exception("a scheduler did not close", extra={"cluster": self._cluster})
        await self._send(Closed(self._cluster, reason))

    async def _listen(self) -> str:
        """Serve requests; returns the reason for which to close."""
        while True:
            for frame in await self._receive():
                if isinstance(frame, Close):
                    return frame.reason
                if isinstance(frame, Renew):
                    self._scheduler.security.renew(frame.credentials)
                elif isinstance(frame, MoveData):
                    self._run(self._move(frame), "move-data")
                elif isinstance(frame, LimitIdle):
                    self._scheduler.limit_idle(frame.idle_timeout_s)
                elif isinstance(frame, Open) and frame.cluster == self._cluster:
                    await self._send(Opened(frame.cluster, self._scheduler.address, self._scheduler.dashboard_url))

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    def _deaf(self, workers: list[str]) -> None:
        self._run(self._send(Deaf(workers)), "deaf-workers")

    async def _rehearse(self) -> None:
        """Let the cluster rehearse once its workers have come, unless somebody uses it by then."""
        from dask_fleet.agent.clusters import rehearsal

        scheduler, there, wait_s = self._scheduler, 0, _REHEARSE_AFTER_S
        while rehearsal.is_unused(scheduler):
            await asyncio.sleep(wait_s)
            wait_s = min(_REHEARSE_AT_MOST_AFTER_S, wait_s * 1.5)
            before, there = there, len(scheduler.workers)
            if there == before and rehearsal.is_wanted(scheduler):
                await rehearsal.rehearse(scheduler)
                return

    async def _move(self, request: MoveData) -> None:
        """Let the data of workers be copied; they go on as members that get no new tasks.

        Without a deadline: however long much data takes, it is done when all has been copied, when nobody can take it, or
        when the worker is gone. Given up half-way, Dask would leave the worker a member that gets no tasks.
        """
        names = [name for name in request.workers if name not in self._moving]
        moved: list[str] = []
        kept: dict[str, str] = {}
        self._moving.update(names)
        try:
            if names:
                retired = await self._scheduler.retire_workers(
                    names=[dask_name(worker) for worker in names],
                    close_workers=False,
                    remove=False,
                    stimulus_id=f"retire-{request.request}",
                )
                moved = [str(worker["name"]) for worker in retired.values()]
                kept = self._scheduler.why_kept(set(names).difference(moved))
        except Exception as exc:
            log.exception("data was not moved", extra={"cluster": self._cluster})
            kept = dict.fromkeys(names, f"its scheduler failed to move it: {type(exc).__name__}: {exc}")
        finally:
            self._moving.difference_update(names)
        await self._send(DataMoved(request.request, moved, kept))

    async def _report(self, every_s: float) -> None:
        """Tell how the cluster does, if that has changed."""
        last: SchedulerState | None = None
        said = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(every_s)
            now = time.monotonic()
            lag_s = max(0.0, now - before - every_s)
            state = self._scheduler.fleet_state(self._cluster, lag_s)
            if last is None or now - said > _KEEP_ALIVE_S or lag_s > 0.1 or _differ(state, last):
                await self._send(state)
                last, said = state, now

    async def _receive(self) -> list[Any]:
        data = await asyncio.get_running_loop().sock_recv(self._channel, RECEIVE_BYTES)
        if not data:
            raise EOFError
        return list(self._frames.take(data))

    async def _send(self, frame: Frame) -> None:
        await asyncio.get_running_loop().sock_sendall(self._channel, encode_prefixed(frame))


def _differ(one: SchedulerState, other: SchedulerState) -> bool:
    return (one.workers, one.threads, one.tasks, one.unrunnable, one.clients, one.idle_us) != (
        other.workers, other.threads, other.tasks, other.unrunnable, other.clients, other.idle_us
    )


def _warm_up() -> dict[str, str]:
    """Do beforehand what the first scheduler of a process would do; returns the versions that a cluster must agree on."""
    from distributed.versions import get_versions

    from dask_fleet.agent.clusters import dask_config, fleet_scheduler  # noqa: F401

    dask_config.set_scheduler_defaults()
    packages = get_versions()["packages"]  # it runs ``uname`` once, and reads the metadata of each package
    return {name: version for name, version in packages.items() if version is not None}
