"""Time from asking for a Dask cluster of two workers to its first result: the agent's parts alone, no server between.

    python -m benchmarks.clusters [--rounds 20]

Cases, in turn in each round so that a slow minute of the machine hits all alike; medians are printed:

* ``spare``: the scheduler runs and the workers have joined; a client connects and computes.
* ``shared``: a scheduler process waits unopened, two warm worker processes join it.
* ``shared, forked``: as before, but the scheduler process is forked first.
* ``fresh``: scheduler and workers are forked.
* ``LocalCluster``: two processes of one thread, without TLS.

All but the last use mutual TLS. The steps of ``shared`` are printed as well, and what one connection costs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver
from typing import Any

from distributed import Client, LocalCluster
from distributed.comm import connect, listen

from dask_fleet.agent.child_process import ChildProcess
from dask_fleet.agent.clusters import member_process
from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.frames import Close, Join, Joined, Open, Released, decode_from_membership
from dask_fleet.agent.clusters.schedulers import SchedulerLauncher, SchedulerProcess
from dask_fleet.agent.clusters.security import MemberSecurity, client_security
from dask_fleet.agent.forker import Forker

TIMEOUT_S = 60.0
WORKERS = 2


def add_one(x: int) -> int:
    return x + 1


class Measured:
    """All samples by name, in milliseconds."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.samples.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)

    def report(self) -> None:
        for name, values in self.samples.items():
            middle = statistics.median(values)
            print(f"{name:32} {middle:9.1f} ms   {min(values):9.1f} … {max(values):9.1f}   n={len(values)}")


class Process:
    """A worker process and the frames it sent."""

    def __init__(self, child: ChildProcess[Any]) -> None:
        self.child = child
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        child.watch(self.frames.put_nowait, lambda _: None)

    async def until(self, kind: type) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not isinstance(frame := await self.frames.get(), kind):
                if getattr(frame, "failed", False):
                    raise RuntimeError(f"a worker did not join: {frame.reason}")


class Bench:
    def __init__(self, thread: ThreadPoolExecutor, scratch: str, measured: Measured) -> None:
        self.forker = Forker(thread)
        self.launcher = SchedulerLauncher(self.forker)
        self.scratch, self.measured = scratch, measured
        self.numbers = itertools.count()

    async def process(self) -> Process:
        return Process(await self.forker.fork(member_process.main, name="worker", decode=decode_from_membership))

    async def spare(self) -> SchedulerProcess:
        scheduler = await self.launcher.launch()
        await scheduler.ready()
        return scheduler

    async def open(self, scheduler: SchedulerProcess, authority: Authority) -> str:
        credentials = authority.issue(Role.SCHEDULER)
        opened = await scheduler.open(Open(cluster=authority.cluster, credentials=credentials, host="127.0.0.1"))
        return opened.address

    async def join(self, processes: list[Process], address: str, authority: Authority) -> list[str]:
        names = []
        for process in processes:
            name = f"m{next(self.numbers)}"
            names.append(name)
            process.child.send(
                Join(
                    membership=name, cluster=authority.cluster, scheduler=address, credentials=authority.issue(Role.WORKER),
                    host="127.0.0.1", name=name, nthreads=1, memory_limit=2 << 30, local_directory=self.scratch,
                )
            )
        await asyncio.gather(*(process.until(Joined) for process in processes))
        return names

    async def use(self, address: str, authority: Authority, steps: str = "") -> None:
        security = client_security(authority.issue(Role.CLIENT))
        step = self.measured.step
        with step(f"{steps}: client connects") if steps else nullcontext():
            client = await Client(address, security=security, asynchronous=True, set_as_default=False)
        with step(f"{steps}: first result") if steps else nullcontext():
            assert await client.submit(add_one, 1) == 2
        self._client = client

    async def end(self, scheduler: SchedulerProcess, processes: list[Process], *, fresh: bool = False) -> None:
        await self._client.close()
        await scheduler.close("measured")
        for process in processes:
            await process.until(Released)
            if fresh:
                process.child.send(Close("measured"))

    # ------------------------------------------------------------------ the cases

    async def with_spare(self, shared: list[Process]) -> None:
        scheduler, authority = await self.spare(), Authority("b")
        address = await self.open(scheduler, authority)
        await self.join(shared, address, authority)
        with self.measured.step("spare"):
            await self.use(address, authority)
        await self.end(scheduler, shared)

    async def with_shared(self, shared: list[Process]) -> None:
        scheduler = await self.spare()
        step = self.measured.step
        with step("shared"):
            authority = Authority("b")
            with step("shared: scheduler opens"):
                address = await self.open(scheduler, authority)
            with step("shared: workers join"):
                await self.join(shared, address, authority)
            await self.use(address, authority, "shared")
        await self.end(scheduler, shared)

    async def with_forked_scheduler(self, shared: list[Process]) -> None:
        with self.measured.step("shared, forked"):
            scheduler, authority = await self.spare(), Authority("b")
            address = await self.open(scheduler, authority)
            await self.join(shared, address, authority)
            await self.use(address, authority)
        await self.end(scheduler, shared)

    async def fresh(self) -> None:
        with self.measured.step("fresh"):
            scheduler, *processes = await asyncio.gather(self.spare(), *(self.process() for _ in range(WORKERS)))
            authority = Authority("b")
            address = await self.open(scheduler, authority)
            await self.join(processes, address, authority)
            await self.use(address, authority)
        await self.end(scheduler, processes, fresh=True)

    async def local_cluster(self) -> None:
        with self.measured.step("LocalCluster"):
            cluster = await LocalCluster(
                n_workers=WORKERS, threads_per_worker=1, asynchronous=True, dashboard_address=None, memory_limit="2GiB"
            )
            client = await Client(cluster, asynchronous=True, set_as_default=False)
            assert await client.submit(add_one, 1) == 2
        await client.close()
        await cluster.close()

    async def connections(self) -> None:
        """One connection by Dask's comms, its handshakes included, with both ends in this process."""
        authority = Authority("b")
        security = MemberSecurity(authority.issue(Role.WORKER))
        cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("tcp", {}, {}),
            ("tls", security.get_listen_args("worker"), security.get_connection_args("worker")),
        ]
        for scheme, listening, connecting in cases:
            async with listen(f"{scheme}://127.0.0.1:0", _ignore, **listening) as listener:
                for _ in range(5):
                    with self.measured.step(f"a connection, {scheme}"):
                        comm = await connect(listener.contact_address, **connecting)
                    await comm.close()


async def _ignore(comm: Any) -> None:
    """Hold the other end open until it is closed."""
    try:
        await comm.read()
    except OSError:
        comm.abort()


async def run(rounds: int) -> None:
    measured = Measured()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as thread:
        bench = Bench(thread, scratch, measured)
        shared = [await bench.process() for _ in range(WORKERS)]
        for number in range(rounds + 1):
            await bench.with_spare(shared)
            await bench.with_shared(shared)
            await bench.with_forked_scheduler(shared)
            await bench.fresh()
            await bench.local_cluster()
            await bench.connections()
            if number == 0:  # warms everyone up
                measured.samples.clear()
        for process in shared:
            process.child.send(Close("measured"))
        await asyncio.sleep(0.5)
        thread.submit(forkserver._forkserver._stop).result()  # type: ignore[attr-defined]  # noqa: SLF001
    measured.report()
    local, spare = (statistics.median(measured.samples[name]) for name in ("LocalCluster", "spare"))
    print(f"from a spare {local / spare:.1f} times as fast as LocalCluster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(run(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
