"""One cluster whose scheduler this agent runs, from the order to open it to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.frames import Deaf, Open, Opened, SchedulerState
from dask_fleet.agent.clusters.scheduler_watch import SchedulerWatch
from dask_fleet.agent.clusters.schedulers import CLOSE_S, SchedulerFailed, SchedulerProcess
from dask_fleet.agent.clusters.spares import Spares
from dask_fleet.config.settings import MAX_CERTIFICATE_LIFETIME_S
from dask_fleet.protocol.cluster_frames import ClusterOpened, ClusterRef, ClusterStatus, OpenCluster, Retired

log = logging.getLogger(__name__)

_TAKE_S = 60.0
"""How long a scheduler process may take to be had; a host under load forks slowly."""
_IDLE_BEYOND_S = 60.0
"""The server closes idle clusters. This much later the scheduler does it itself: the server may be away."""


_LOOK_S = 0.5
"""How often the kernel is asked whether the process was stopped. One that is silent may be busy; one that is stopped is lost
to its workers and clients, which wait for it.
"""


def _beyond(idle_timeout_s: float | None) -> float | None:
    return None if idle_timeout_s is None else idle_timeout_s + _IDLE_BEYOND_S


class SchedulerLimits(NamedTuple):
    """What an agent allows the schedulers that it runs."""

    memory_limit_bytes: int = 0
    """Of each process; 0 for none. A cluster may ask for another one."""
    certificate_lifetime_s: float = MAX_CERTIFICATE_LIFETIME_S
    """Of the certificates in each cluster."""


class HeldCluster:
    """The scheduler process of one epoch of a cluster, and the cluster's authority, whose key is nowhere else."""

    def __init__(
        self,
        request: OpenCluster,
        *,
        spares: Spares[SchedulerProcess],
        host: str,
        send: Callable[[Any], None],
        limits: SchedulerLimits,
        folder: Path,
        targets: Sequence[str] = (),
        on_deaf: Callable[[ClusterRef, Deaf], None] = lambda _ref, _deaf: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.ref = ClusterRef(request.cluster, request.epoch)
        self.authority = Authority(request.cluster, certificate_lifetime_s=limits.certificate_lifetime_s)
        self.opened: asyncio.Future[Opened | None] = loop.create_future()
        """Where it listens; ``None`` if it never will."""
        self.expires_us = 0
        """When the scheduler's certificate does."""
        self._spares = spares
        self._host = host
        self._send = send
        self._limits = limits
        self.folder = folder
        """Its scheduler's own."""
        self._targets = targets
        self._on_deaf = on_deaf
        self._process: SchedulerProcess | None = None
        self._closing: asyncio.Future[str] = loop.create_future()

    async def live(self) -> str:
        """Open it, wait for its end, and return why it ended. Raises nothing but a cancellation."""
        try:
            return await self._serve()
        except SchedulerFailed as exc:
            return str(exc)
        except TimeoutError:
            return "this agent could not start a scheduler process: none was ready in time"
        except (OSError, EOFError) as exc:
            return f"this agent could not start a scheduler process: {exc}"
        except Exception as exc:
            log.exception("a scheduler failed", extra={"action": "scheduler_failed", "cluster": self.ref.cluster})
            return f"its agent failed: {type(exc).__name__}: {exc}"
        finally:
            if not self.opened.done():
                self.opened.set_result(None)
            if self._process is not None:
                self._process.kill()  # harmless if it has ended

    async def _serve(self) -> str:
        async with asyncio.timeout(_TAKE_S):
            process = self._process = await self._spares.take()
        process.on_state = self._state
        process.on_deaf = lambda deaf: self._on_deaf(self.ref, deaf)
        request = self.request
        asked = request.memory_limit_bytes
        watch = SchedulerWatch(process.pid, self._limits.memory_limit_bytes if asked is None else asked)
        opening = asyncio.create_task(process.open(self._request()), name=f"open-{self.ref.cluster}")
        ended = asyncio.create_task(process.ended(), name=f"ended-{self.ref.cluster}")
        try:
            if must_die := await watch.until(opening):  # a preload may take all memory there is
                return await _kill(process, must_die, ended)
            self.opened.set_result(opening.result())
            if self.request is not request:  # meanwhile it was told of another limit
                process.limit_idle(_beyond(self.request.idle_timeout_s))
            self.tell()
            if must_die := await watch.until(ended, self._closing):
                return await _kill(process, must_die, ended)
            if ended.done():
                return f"the scheduler process {ended.result()}" if not process.closed_itself else ended.result()
            why = self._closing.result()
            await process.close(why)
            return why
        finally:
            opening.cancel()
            ended.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            watch.close()

    def _request(self) -> Open:
        request = self.request
        return Open(
            cluster=request.cluster,
            credentials=self._issue(),
            host=self._host,
            config=request.config,
            preloads=request.preload,
            idle_timeout_s=_beyond(request.idle_timeout_s),
            dashboard=request.dashboard,
            targets=list(self._targets),
            for_job=request.for_job,
            folder=str(self.folder),
        )

    def told_again(self, request: OpenCluster) -> None:
        """Take what the server wants of it now: of a spare that was handed out, other limits."""
        if request.idle_timeout_s != self.request.idle_timeout_s:
            self.request = request
            if self._process is not None and self.address:
                self._process.limit_idle(_beyond(request.idle_timeout_s))
        self.tell()

    def close(self, why: str) -> None:
        """Let it end. Twice is harmless."""
        if not self._closing.done():
            self._closing.set_result(why)

    @property
    def closing(self) -> bool:
        """Whether it was told to end."""
        return self._closing.done()

    @property
    def address(self) -> str:
        """Where it listens; empty if it does not (yet)."""
        return opened.address if self.opened.done() and (opened := self.opened.result()) is not None else ""

    def tell(self) -> None:
        """Tell the server where it is and how it does; nothing if it does not listen yet."""
        if not self.opened.done() or (opened := self.opened.result()) is None:
            return
        self._send(
            ClusterOpened(
                self.ref.cluster, self.ref.epoch, opened.address, opened.dashboard, self.authority.ca.encode()
            )
        )
        if self._process is not None and self._process.state is not None:
            self._state(self._process.state)

    def issue(self, role: Role) -> Credentials:
        """Make a key and certificate for a member on this agent."""
        return self.authority.issue(role)

    def renew(self) -> None:
        """Let the scheduler show a fresh certificate."""
        if self._process is not None and self.address:
            self._process.renew(self._issue())

    async def move_data(self, workers: list[str]) -> Retired:
        """Let the data of workers (by name) be copied to others; returns which can go without a loss, and why others not."""
        names = (self.ref.cluster, self.ref.epoch)
        if self._process is None or not self.address:
            return Retired(*names, [])
        try:
            moved = await self._process.move_data(workers)
        except SchedulerFailed:
            return Retired(*names, [])
        return Retired(*names, moved.workers, moved.kept)

    def _issue(self) -> Credentials:
        credentials = self.authority.issue(Role.SCHEDULER)
        self.expires_us = credentials.expires_us
        return credentials

    def _state(self, state: SchedulerState) -> None:
        idle_s = max(0.0, time.time() - state.idle_us / 1e6) if state.idle_us else 0.0
        self._send(
            ClusterStatus(self.ref.cluster, self.ref.epoch, state.workers, state.tasks, state.clients, round(idle_s, 1))
        )


async def _kill(process: SchedulerProcess, why: str, ended: asyncio.Task[str]) -> str:
    process.kill()
    await asyncio.wait([ended], timeout=CLOSE_S)
    return f"the scheduler process {why}"
