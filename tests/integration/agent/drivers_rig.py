"""A worker process with jobs that need clusters, and real schedulers and Dask workers for them; the test is its agent."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.integration.agent.fake_server import PATIENCE_S, until

from dask_fleet.agent import worker_process
from dask_fleet.agent.child_process import ChildProcess
from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.frames import Join, Joined, Open
from dask_fleet.agent.clusters.schedulers import SchedulerLauncher, SchedulerProcess
from dask_fleet.agent.launcher import Launcher
from dask_fleet.agent.worker_frames import decode_from_worker
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.protocol.cluster_frames import JobCluster, NeedCluster
from dask_fleet.protocol.frames import Cancel, Load, Loaded, Outcome, Progress, Start

SERVICE = Path(__file__).with_name("service_drivers.py")


def serve_member(channel: socket.socket, options: worker_process.WorkerOptions) -> None:
    """A worker process, which has threads for several clusters."""
    worker_process.settle("")
    with suppress(ConnectionError, EOFError):
        worker_process._serve(channel, options)
    os._exit(0)


class Given:
    """A cluster that was given to an attempt."""

    def __init__(self, scheduler: SchedulerProcess) -> None:
        self.scheduler = scheduler
        self.closed = False


class Drivers:
    """The agent's part: hands attempts to the worker process and gives each that asks a cluster on the same two members."""

    def __init__(self, launcher: Launcher, members: list[ChildProcess[Any]], scratch: Path) -> None:
        self.members = members
        self.needs: list[NeedCluster] = []
        self.outcomes: list[Outcome] = []
        self.progress: list[Progress] = []
        self.given: dict[tuple[int, int], Given] = {}
        self.gives = True
        self.process: WorkerProcess
        self.exited = False
        self._version = ""
        self._scratch = scratch
        self._schedulers = SchedulerLauncher(launcher.forker)
        self._seq = 0
        self._joined: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def adopt(self, process: WorkerProcess) -> None:
        self.process = process
        process.watch(self._on_frame, self._on_exit)
        process.load_services([str(SERVICE)], 1)

    async def loaded(self) -> None:
        await until(lambda: self._version, what="the service")

    async def start(self, endpoint: str, **params: Any) -> Start:
        self._seq += 1
        start = Start(
            self._seq, 1, 1, f"job{self._seq}", "trial", endpoint, self._version, json.dumps(params).encode(), 60.0, 1 << 30
        )
        self.process.send(start)
        return start

    async def outcome(self, start: Start) -> Outcome:
        return await until(
            lambda: next((outcome for outcome in self.outcomes if outcome.seq == start.seq), None),
            what=f"the outcome of {start.endpoint}",
        )

    async def call(self, endpoint: str, **params: Any) -> Outcome:
        return await self.outcome(await self.start(endpoint, **params))

    async def value(self, endpoint: str, **params: Any) -> Any:
        outcome = await self.call(endpoint, **params)
        assert outcome.failure is None, outcome.failure
        assert outcome.body is not None
        return json.loads(outcome.body)

    def cancel(self, start: Start) -> None:
        self.process.send(Cancel(start.seq, start.run, start.attempt))

    async def need(self, start: Start) -> NeedCluster:
        return await until(
            lambda: next((need for need in self.needs if need.seq == start.seq), None), what="the wish for a cluster"
        )

    async def given_to(self, start: Start) -> Given:
        return await until(lambda: self.given.get((start.seq, start.attempt)), what="the cluster")

    def answer(self, need: NeedCluster, *, why: str) -> None:
        self.process.send(JobCluster(need.seq, need.attempt, "", "", b"", b"", why))

    async def give(self, need: NeedCluster, *, workers: int | None = None) -> None:
        """Open a scheduler, let workers join, and tell the attempt."""
        scheduler = await self._schedulers.launch()
        await scheduler.ready()
        name = f"c{need.seq}"
        authority = Authority(name)
        opened = await scheduler.open(
            Open(cluster=name, credentials=authority.issue(Role.SCHEDULER), host="127.0.0.1",
                 targets=[str(SERVICE)])
        )  # fmt: skip
        given = self.given[need.seq, need.attempt] = Given(scheduler)
        count = len(self.members) if workers is None else workers
        for number, member in enumerate(self.members[:count]):
            member.send(
                Join(
                    membership=f"{name}-{number}",
                    cluster=name,
                    scheduler=opened.address,
                    credentials=authority.issue(Role.WORKER),
                    host="127.0.0.1",
                    name=f"{number}",
                    nthreads=1,
                    memory_limit=0,
                    local_directory=str(self._scratch),
                    resources=need.resources,
                )
            )
        await until(lambda: all(f"{name}-{number}" in self._joined for number in range(count)), what="the workers")
        certificate = authority.sign(need.csr, Role.CLIENT)
        if not given.closed:
            self.process.send(
                JobCluster(need.seq, need.attempt, name, opened.address, authority.ca.encode(), certificate.encode())
            )

    def on_member(self, frame: Any) -> None:
        if isinstance(frame, Joined):
            self._joined[frame.membership] = frame.address

    def _on_frame(self, _worker: WorkerProcess, frame: Any) -> None:
        if isinstance(frame, Loaded):
            assert not frame.problems, frame.problems
            self._version = frame.versions["trial"]
        elif isinstance(frame, NeedCluster):
            self.needs.append(frame)
            if self.gives:
                self._run(self.give(frame))
        elif isinstance(frame, Outcome):
            self.outcomes.append(frame)
            given = self.given.get((frame.seq, frame.attempt))
            if given is not None:
                given.closed = True
                self._run(given.scheduler.close("its attempt has ended"))
        elif isinstance(frame, Progress):
            self.progress.append(frame)

    def _on_exit(self, *_: Any) -> None:
        self.exited = True

    def _run(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)

    async def settle(self) -> None:
        await asyncio.gather(*self._tasks)
        for given in self.given.values():
            if given.scheduler.alive:
                await given.scheduler.close("the test has ended")


@asynccontextmanager
async def drivers(folder: Path, *, nthreads: int = 2) -> AsyncIterator[Drivers]:
    """A worker process of `nthreads` places, and two member processes."""
    for name in ("spool", "logs", "scratch"):
        (folder / name).mkdir(parents=True)
    launcher = Launcher(
        name="test", nthreads=nthreads, data_dir=folder, spool=folder / "spool", logs=folder / "logs",
        has_other_children=True,
    )  # fmt: skip
    forker = launcher.forker
    members: list[ChildProcess[Any]] = []
    worker: WorkerProcess | None = None
    rig = Drivers(launcher, members, folder / "scratch")
    gone: list[int | None] = []
    try:
        for _ in range(2):
            options = worker_process.WorkerOptions(
                name="member", nthreads=4, spool=folder / "spool", logs=folder / "logs", token="", for_lease=False,
                folder="",
            )
            member = await forker.fork(serve_member, options, name="member", decode=decode_from_worker)
            member.watch(rig.on_member, gone.append)
            member.send(Load([str(SERVICE)]))
            members.append(member)
        worker = await launcher.launch()
        rig.adopt(worker)
        await rig.loaded()
        yield rig
        await rig.settle()
    finally:
        if worker is not None:
            worker.kill()
        for member in members:
            member.kill()
        for given in rig.given.values():
            given.scheduler.kill()
        await until(
            lambda: len(gone) == len(members)
            and (worker is None or rig.exited)
            and not any(given.scheduler.alive for given in rig.given.values()),
            what="the end of all processes",
        )
        await asyncio.to_thread(launcher.close)


def member_pids(rig: Drivers) -> set[int]:
    return {member.pid for member in rig.members}


__all__ = ["PATIENCE_S", "Drivers", "drivers", "member_pids", "os"]
