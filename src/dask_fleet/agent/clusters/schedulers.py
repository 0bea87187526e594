"""Scheduler processes, seen from the agent: forked ahead of time as spares, opened for one cluster, ended with it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from dask_fleet.agent.child_process import ChildProcess
from dask_fleet.agent.clusters import scheduler_process
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.frames import (
    AgentBoundFromScheduler,
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
    decode_from_scheduler,
)
from dask_fleet.agent.deaths import describe_exit
from dask_fleet.agent.forker import Forker
from dask_fleet.agent.stray_output import StrayOutput

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""What a scheduler may take to end before it is killed."""


class SchedulerFailed(Exception):
    """The scheduler could not be opened, or its process has ended; the text says why."""


class SchedulerProcess:
    """A scheduler process: a spare until `open`, then the scheduler of one cluster, never of a second.

    `on_state` gets its reports, `on_deaf` what it says of workers that do not answer. `on_exit` is called once when the
    process has ended, with how: after `close`, on its own (idle, or closed by a client), or killed. Nothing else ends with
    it but the memberships of its cluster.
    """

    def __init__(self, child: ChildProcess[AgentBoundFromScheduler], stray: StrayOutput) -> None:
        self.pid = child.pid
        self.state: SchedulerState | None = None
        self.on_state: Callable[[SchedulerState], None] = lambda _: None
        self.on_exit: Callable[[str], None] = lambda _: None
        loop = asyncio.get_running_loop()
        self.on_deaf: Callable[[Deaf], None] = lambda _: None
        self._child = child
        self._cluster = ""
        self._reason = ""
        self._numbers = itertools.count(1)
        self._ready: asyncio.Future[Spare] = loop.create_future()
        self._opened: asyncio.Future[Opened] = loop.create_future()
        self._gone: asyncio.Future[str] = loop.create_future()
        self._moves: dict[int, asyncio.Future[DataMoved]] = {}
        self._stray = stray
        stray.watch(f"scheduler-{child.pid}")
        child.watch(self._on_frame, self._exited)

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return not self._gone.done()

    @property
    def closed_itself(self) -> bool:
        """Whether its scheduler has closed, instead of its process having died under it."""
        return bool(self._reason)

    async def ready(self) -> Spare:
        """Wait until it can be opened without a delay.

        Raises
        ------
        SchedulerFailed
            If it ended before.
        """
        return await asyncio.shield(self._ready)

    async def open(self, request: Open, *, timeout_s: float = 30.0) -> Opened:
        """Make it the scheduler of a cluster. Asked again, it gives the same answer.

        Raises
        ------
        SchedulerFailed
            If it could not start: a preload that raises, an address that cannot be bound, or silence for `timeout_s`. It is
            ended then.
        """
        if self._cluster not in ("", request.cluster):
            raise SchedulerFailed(f"this process is the scheduler of cluster {self._cluster}; take another spare")
        if not self._cluster:
            self._cluster = request.cluster
            self._child.send(request)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._opened)
        except TimeoutError:
            self.kill()
            raise SchedulerFailed(f"the scheduler did not start within {timeout_s:.0f} s") from None

    def renew(self, credentials: Credentials) -> None:
        """Let it show another certificate from now on."""
        self._child.send(Renew(self._cluster, credentials))

    def limit_idle(self, seconds: float | None) -> None:
        """Let it close itself after so long without work, from now on."""
        self._child.send(LimitIdle(seconds))

    async def move_data(self, workers: list[str]) -> DataMoved:
        """Let the data of workers (by name) be copied to others; returns which can go without a loss, and why others cannot.

        However long that takes: a scheduler may be busy, and data large.

        Raises
        ------
        SchedulerFailed
            If the process ends meanwhile.
        """
        request = next(self._numbers)
        moved: asyncio.Future[DataMoved] = asyncio.get_running_loop().create_future()
        self._moves[request] = moved
        try:
            self._child.send(MoveData(request, workers))
            waits: list[asyncio.Future[Any]] = [moved, self._gone]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not moved.done():
                raise SchedulerFailed(f"the scheduler process has ended: {self._gone.result()}")
            return moved.result()
        finally:
            del self._moves[request]

    async def close(self, reason: str, *, timeout_s: float = CLOSE_S) -> None:
        """End it, workers and clients being told; kill it if that takes longer than `timeout_s`."""
        self._child.send(Close(reason))
        await asyncio.wait([self._gone], timeout=timeout_s)
        if not self._gone.done():
            log.warning("a scheduler did not end", extra={"action": "kill", "cluster": self._cluster, "pid": self.pid})
            self.kill()
            await asyncio.wait([self._gone], timeout=timeout_s)

    def kill(self) -> None:
        """Kill it; its exit is reported as any other."""
        self._child.kill()

    async def ended(self) -> str:
        """Wait for its end; returns how it ended."""
        return await asyncio.shield(self._gone)

    def _on_frame(self, frame: AgentBoundFromScheduler) -> None:
        if isinstance(frame, SchedulerState):
            self.state = frame
            self.on_state(frame)
        elif isinstance(frame, Spare):
            if not self._ready.done():
                self._ready.set_result(frame)
        elif isinstance(frame, Opened):
            if not self._opened.done():
                self._opened.set_result(frame)
        elif isinstance(frame, OpenFailed):
            self._fail(SchedulerFailed(f"the scheduler could not start: {frame.error}"))
        elif isinstance(frame, DataMoved):
            moved = self._moves.get(frame.request)
            if moved is not None and not moved.done():
                moved.set_result(frame)
        elif isinstance(frame, Deaf):
            self.on_deaf(frame)
        elif isinstance(frame, Closed):
            self._reason = frame.reason

    def _exited(self, code: int | None) -> None:
        self._stray.drain()
        how = self._reason or describe_exit(code)
        self._fail(SchedulerFailed(f"the scheduler process has ended: {how}"))
        self._gone.set_result(how)
        self.on_exit(how)

    def _fail(self, error: SchedulerFailed) -> None:
        for future in (self._ready, self._opened):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits still gets it; whoever does not is not warned


class SchedulerLauncher:
    """Forks spares.

    Parameters
    ----------
    forker
        The one by which all of this process fork.
    folder
        What stands for the agent's data folder in the environment of its processes.
    """

    def __init__(self, forker: Forker, folder: str = "") -> None:
        self._forker = forker
        self._folder = folder

    async def launch(self) -> SchedulerProcess:
        """Fork a spare. It is forked, not yet `ready`.

        Raises
        ------
        OSError, EOFError
            If the forkserver died meanwhile or the host has no process left to give.
        """
        hears, speaks = multiprocessing.Pipe(duplex=False)
        with hears, speaks:
            stray = StrayOutput(os.dup(hears.fileno()))
            try:
                child = await self._forker.fork(
                    scheduler_process.main, speaks, self._folder, name="scheduler", decode=decode_from_scheduler
                )
            except BaseException:
                stray.close()
                raise
        return SchedulerProcess(child, stray)
