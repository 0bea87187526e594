"""An agent's part in clusters, small: spares, worker processes, and clusters made of them. On a loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

from distributed import Client

from dask_fleet.agent.child_process import ChildProcess
from dask_fleet.agent.clusters import member_process
from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.frames import (
    AgentBoundFromMembership,
    Close,
    Join,
    Joined,
    Leave,
    Left,
    Open,
    Opened,
    Released,
    decode_from_membership,
)
from dask_fleet.agent.clusters.schedulers import SchedulerLauncher, SchedulerProcess
from dask_fleet.agent.clusters.security import client_security
from dask_fleet.agent.deaths import describe_exit
from dask_fleet.agent.forker import Forker

T = TypeVar("T")
PATIENCE_S = 60.0
MEMORY_LIMIT_BYTES = 4 << 30


class WorkerProcess:
    """A process for memberships, and what it has said."""

    def __init__(self, child: ChildProcess[AgentBoundFromMembership], nthreads: int) -> None:
        self.child, self.nthreads = child, nthreads
        self.frames: list[AgentBoundFromMembership] = []
        self.exit = ""
        self._news = asyncio.Event()
        child.watch(self._on_frame, self._on_exit)

    @property
    def pid(self) -> int:
        return self.child.pid

    def _on_frame(self, frame: AgentBoundFromMembership) -> None:
        self.frames.append(frame)
        self._news.set()

    def _on_exit(self, code: int | None) -> None:
        self.exit = describe_exit(code)
        self._news.set()

    async def until(self, true: Callable[[], T]) -> T:
        """Wait until `true` gives something true; returns that."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := true()):
                self._news.clear()
                await self._news.wait()
        return found

    def said(self, kind: type[T], membership: str) -> list[T]:
        """Return the frames of a membership of one kind."""
        return [frame for frame in self.frames if isinstance(frame, kind) and frame.membership == membership]  # type: ignore[attr-defined]


class Cluster:
    """A scheduler and its memberships."""

    def __init__(self, site: Site, scheduler: SchedulerProcess, authority: Authority, opened: Opened) -> None:
        self.site, self.scheduler, self.authority, self.opened = site, scheduler, authority, opened
        self.members: dict[str, WorkerProcess] = {}

    def join(self, process: WorkerProcess, **options: Any) -> str:
        """Ask for a membership; returns its id."""
        n = next(self.site.numbers)
        settings: dict[str, Any] = {
            "scheduler": self.opened.address, "credentials": self.authority.issue(Role.WORKER), "host": "127.0.0.1",
            "name": f"worker-{n}", "nthreads": process.nthreads, "memory_limit": MEMORY_LIMIT_BYTES,
            "local_directory": str(self.site.scratch), **options,
        }
        membership = f"m{n}"
        self.members[membership] = process
        process.child.send(Join(membership=membership, cluster=self.authority.cluster, **settings))
        return membership

    async def joined(self) -> None:
        for membership, process in self.members.items():
            await process.until(lambda process=process, membership=membership: (
                process.said(Joined, membership) or process.said(Left, membership)
            ))
            assert process.said(Joined, membership), process.said(Left, membership)

    def client(self, **options: Any) -> Client:
        """Return a client to be used as a context manager."""
        security = client_security(self.authority.issue(Role.CLIENT))
        return Client(self.opened.address, security=security, **options)

    async def leave(self, membership: str) -> Left:
        process = self.members[membership]
        process.child.send(Leave(membership))
        return (await process.until(lambda: process.said(Left, membership)))[-1]

    async def released(self) -> list[Left]:
        """Wait until no membership of it is left."""
        for membership, process in self.members.items():
            await process.until(lambda process=process, membership=membership: process.said(Released, membership))
        return [left for membership, process in self.members.items() for left in process.said(Left, membership)]

    async def close(self, reason: str = "closed") -> list[Left]:
        await self.scheduler.close(reason)
        return await self.released()


class Site:
    """Everything on one host. Make it on its loop, by `site`."""

    def __init__(self, scratch: Path, thread: ThreadPoolExecutor) -> None:
        self.scratch = scratch
        self.numbers = itertools.count()
        self.forker = Forker(thread)
        self.launcher = SchedulerLauncher(self.forker)
        self.processes: list[WorkerProcess] = []
        self.schedulers: list[SchedulerProcess] = []

    async def spare(self) -> SchedulerProcess:
        scheduler = await self.launcher.launch()
        self.schedulers.append(scheduler)
        await scheduler.ready()
        return scheduler

    async def process(self, nthreads: int = 2) -> WorkerProcess:
        child = await self.forker.fork(member_process.main, nthreads, name="worker", decode=decode_from_membership)
        self.processes.append(WorkerProcess(child, nthreads))
        return self.processes[-1]

    async def open(self, scheduler: SchedulerProcess | None = None, **options: Any) -> Cluster:
        scheduler = scheduler or await self.spare()
        authority = Authority(f"c{next(self.numbers)}")
        request = Open(
            cluster=authority.cluster, credentials=authority.issue(Role.SCHEDULER),
            **{"host": "127.0.0.1", "report_s": 0.05, **options},
        )
        return Cluster(self, scheduler, authority, await scheduler.open(request))

    async def cluster(self, *processes: WorkerProcess, **options: Any) -> Cluster:
        """Open a cluster with a worker in each of the processes."""
        cluster = await self.open(**options)
        for process in processes:
            cluster.join(process)
        await cluster.joined()
        return cluster

    async def close(self) -> None:
        for scheduler in self.schedulers:
            if scheduler.alive:
                await scheduler.close("the test is over")
        for process in self.processes:
            if not process.exit:
                process.child.send(Close("the test is over"))
                await process.until(lambda process=process: process.exit)


class OnLoop:
    """A site for sync tests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, site: Site) -> None:
        self.loop, self.site = loop, site

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, 2 * PATIENCE_S), self.loop).result()


@contextlib.contextmanager
def site() -> Iterator[OnLoop]:
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever, name="site")
    runner.start()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as thread:
        made = OnLoop(loop, Site(Path(scratch), thread))
        try:
            yield made
        finally:
            made.do(made.site.close())
            thread.submit(forkserver._forkserver._stop).result()  # type: ignore[attr-defined]
            loop.call_soon_threadsafe(loop.stop)
            runner.join()
            loop.close()
