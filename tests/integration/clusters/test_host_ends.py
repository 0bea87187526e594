"""Whatever is killed takes down only what it carried, and the server is told of each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.integration.agent.fake_server import AgentProcess, FakeServer, agent_process, fleet, make_data_dir, run, until
from tests.integration.clusters.drive import Clusters, scratch

from dask_fleet.protocol.cluster_frames import (
    ClusterGone,
    ClusterOpened,
    ClusterStatus,
    SlotsJoined,
    SlotsLeft,
)
from dask_fleet.protocol.frames import Shutdown


def listener(address: str) -> psutil.Process:
    """Return the process that listens at a Dask address."""
    port = int(address.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise AssertionError(f"nobody listens at {address}")


async def made(clusters: Clusters, *, fresh: bool = True) -> tuple[str, str, psutil.Process, psutil.Process]:
    """A cluster of one worker: its name, the lease, and the processes of scheduler and worker."""
    cluster = await clusters.open()
    lease = await clusters.grant(cluster, fresh=fresh)
    scheduler = listener((await clusters.until(ClusterOpened, cluster=cluster)).address)
    worker = listener((await clusters.until(SlotsJoined, lease=lease)).address)
    return cluster, lease, scheduler, worker


async def works(clusters: Clusters, cluster: str) -> None:
    async with await clusters.client(cluster) as client:
        assert await client.submit(sum, [1, 2, 3], pure=False) == 6


def test_a_killed_scheduler_ends_its_own_cluster_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=2, nthreads=2, spares=1) as (server, _agent):
            clusters = Clusters(server)
            victim, lease, scheduler, _ = await made(clusters)
            shared = await clusters.grant(victim, fresh=False)
            other, others_lease, *_ = await made(clusters, fresh=False)
            scheduler.kill()
            assert "SIGKILL" in (await clusters.until(ClusterGone, cluster=victim)).why
            for each in (lease, shared):
                await clusters.until(SlotsLeft, lease=each)
            await works(clusters, other)
            assert not clusters.heard(SlotsLeft, lease=others_lease)
            left = sorted([others_lease, f"{other}-1"])
            await until(lambda: scratch(tmp_path / "data") == left, what="the victim's folders to go")
            await clusters.open(victim, epoch=2)  # and there is another one at once

    run(main)


def test_a_killed_worker_process_is_told_for_all_it_carried(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, nthreads=4, spares=1) as (server, _agent):
            clusters = Clusters(server)
            one, fresh, _, process = await made(clusters)
            two, first, _, shared = await made(clusters, fresh=False)
            second = await clusters.grant(one, fresh=False)
            attempt = await server.start("wait_for", path=str(tmp_path / "gate"))
            process.kill()
            assert "SIGKILL" in (await clusters.until(SlotsLeft, lease=fresh)).why
            await works(clusters, one)
            shared.kill()
            for lease in (first, second):
                assert "SIGKILL" in (await clusters.until(SlotsLeft, lease=lease)).why
            outcome = await server.outcome(attempt)
            assert (str(outcome.state), str(outcome.blame)) == ("lost", "shared"), "a Dask worker may be to blame as well"
            assert scratch(tmp_path / "data") == sorted([f"{one}-1", f"{two}-1"]), "those of the schedulers"
            for cluster in (one, two):
                assert not clusters.heard(ClusterGone, cluster=cluster)
                await clusters.grant(cluster)
                await works(clusters, cluster)

    run(main)


def _hoard(mib: int) -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * (1 << 20) * 16))
        if len(kept) * 16 > mib:
            break


def test_a_worker_that_takes_too_much_memory_is_ended_by_its_agent(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, nthreads=2, spares=1) as (server, _agent):
            clusters = Clusters(server)
            cluster = await clusters.open()
            config = {"distributed.scheduler.allowed-failures": 0}
            lease = await clusters.grant(cluster, memory_limit_bytes=512 << 20, config=config)
            async with await clusters.client(cluster) as client:
                future = client.submit(_hoard, 8_000)
                left = await clusters.until(SlotsLeft, lease=lease)
                assert "killed for its memory" in left.why
                assert "512 MiB" in left.why
                await future.cancel()
            assert not clusters.heard(ClusterGone, cluster=cluster)

    run(main)


def test_clusters_go_on_while_the_server_is_away(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, nthreads=2, spares=1) as (server, _agent):
            clusters = Clusters(server)
            cluster, lease, *_ = await made(clusters)
            async with await clusters.client(cluster) as client:
                await server.close()
                assert await client.submit(sum, [1, 2, 3]) == 6
                opened, joined = len(clusters.heard(ClusterOpened)), len(clusters.heard(SlotsJoined))
                await server.open()
                await until(lambda: len(server.hellos) == 2, what="the agent's return")
                hello = server.hellos[-1]
                assert ([ref.cluster for ref in hello.clusters], hello.leases) == ([cluster], [lease])
                await clusters.until(ClusterOpened, count=opened + 1)
                await clusters.until(SlotsJoined, count=joined + 1)
                assert await client.submit(sum, [1, 2, 4]) == 7
            await clusters.until(ClusterStatus, cluster=cluster, workers=1)
            await clusters.take(lease)
            await clusters.close(cluster)

    run(main)


def test_nothing_outlives_a_killed_agent_and_the_next_one_sweeps(tmp_path: Path) -> None:
    async def main() -> None:
        data_dir = make_data_dir(tmp_path / "data")
        elsewhere = tmp_path / "elsewhere"
        server = FakeServer(data_dir)
        await server.open()
        try:
            with agent_process(data_dir, nworkers=1, nthreads=2, spares=1) as agent:
                await server.loaded()
                clusters = Clusters(server)
                cluster, *_ = await made(clusters)
                await clusters.grant(cluster, config={"temporary-directory": str(elsewhere)})
                assert len(scratch(data_dir)) == 3
                agent.kill()
                await until(lambda: not agent.members(), what="the end of all its processes")
            assert list(elsewhere.iterdir())
            with agent_process(data_dir, nworkers=1):
                await until(lambda: len(server.hellos) == 2, what="the next agent")
                # It says hello while it sweeps.
                await until(lambda: scratch(data_dir) == [] == list(elsewhere.iterdir()), what="the folders to be swept")
                assert (server.hellos[-1].clusters, server.hellos[-1].leases) == ([], [])
        finally:
            await server.close()

    run(main)


@pytest.mark.parametrize("how", ["shutdown", "sigterm"])
def test_an_agent_that_ends_closes_its_clusters_first(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, nthreads=2, spares=1) as (server, agent):
            clusters = Clusters(server)
            cluster, lease, *_ = await made(clusters)
            if how == "shutdown":
                await server.send(Shutdown(5.0))
            else:
                agent.terminate()
            assert "told to end" in (await clusters.until(ClusterGone, cluster=cluster)).why
            await clusters.until(SlotsLeft, lease=lease)
            assert await agent.exit_code() == 0
            await until(lambda: not agent.members(), what="the end of all its processes")
            assert scratch(tmp_path / "data") == []

    run(main)


def _count(agent: AgentProcess) -> tuple[int, int, int, int]:
    """Processes, and of the agent itself descriptors, threads and MiB."""
    process = psutil.Process(agent.popen.pid)
    return len(agent.members()), process.num_fds(), process.num_threads(), process.memory_info().rss >> 20


def test_a_hundred_clusters_leave_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, nthreads=2, spares=1) as (server, agent):
            clusters = Clusters(server)

            async def cycle(n: int) -> None:
                cluster = await clusters.open()
                lease = await clusters.grant(cluster, fresh=n % 4 == 0)
                if n % 10 == 0:
                    await works(clusters, cluster)
                await clusters.take(lease)
                await clusters.close(cluster)

            async def settled() -> tuple[int, int, int, int]:
                # The agent, its forkserver and resource tracker, one worker process, three spares.
                await until(lambda: len(agent.members()) == base, what="spares and nothing else")
                return _count(agent)

            async def grown_little(before: tuple[int, int, int, int]) -> None:
                """What is open while a spare is born or buried is open for a moment; what has leaked stays."""
                last = before

                def look() -> bool:
                    nonlocal last
                    last = _count(agent)
                    return all(now <= was + more for now, was, more in zip(last, before, (0, 2, 1, 8), strict=True))

                try:
                    await until(look, what="what it holds")
                except AssertionError as exc:
                    raise AssertionError(f"{before} before, {last} after") from exc

            await until(lambda: len(agent.workers()) == 4, what="the spares")
            base = len(agent.members())
            for n in range(10):
                await cycle(n)
            before = await settled()
            shared = agent.workers()[0]
            fds, threads = shared.num_fds(), shared.num_threads()
            for n in range(90):
                await cycle(n)
            await settled()
            await grown_little(before)
            if shared.is_running():
                assert shared.num_fds() <= fds + 4
                assert shared.num_threads() <= threads + 2
            await until(lambda: not scratch(tmp_path / "data"), what="the last folder to go")

    asyncio.run(asyncio.wait_for(main(), 240))


def test_an_agent_has_no_dask_in_memory() -> None:
    code = "import sys, dask_fleet.agent.agent; print([m for m in ('dask', 'distributed', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_stopped_scheduler_is_closed_by_force(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, spares=0) as (server, _agent):
            clusters = Clusters(server)
            cluster = await clusters.open()
            scheduler = listener((await clusters.until(ClusterOpened, cluster=cluster)).address)
            scheduler.send_signal(signal.SIGSTOP)
            assert (await clusters.close(cluster)).why == "closed"
            assert not scheduler.is_running()

    run(main)


def test_a_scheduler_that_is_stopped_is_lost_and_ended(tmp_path: Path) -> None:
    """Its workers and clients would wait for it for ever; that it is silent says nothing, that it is stopped does."""

    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, spares=0) as (server, _agent):
            clusters = Clusters(server)
            cluster, lease, scheduler, worker = await made(clusters)
            scheduler.send_signal(signal.SIGSTOP)
            assert "stopped" in (await clusters.until(ClusterGone, cluster=cluster)).why
            await clusters.until(SlotsLeft, lease=lease)
            assert not scheduler.is_running()
            assert not worker.is_running()
            assert (await clusters.open(cluster, epoch=2)) == cluster

    run(main)
