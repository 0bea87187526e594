"""Clusters of an agent as its server asks for them: every frame, on real processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from distributed import worker_client
from tests.integration.agent.fake_server import fleet, run, until
from tests.integration.clusters.drive import Clusters, Play, make_request, playing, scratch

from dask_fleet.protocol.cluster_frames import (
    ClusterGone,
    ClusterOpened,
    ClusterStatus,
    GrantSlots,
    OpenCluster,
    Retired,
    RetireWorkers,
    Sign,
    Signature,
    Signed,
    SlotsJoined,
    SlotsLeft,
    TakeSlots,
    WantSignature,
)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """Runs a scene with an agent of four slots that no test disturbs for others."""
    yield from playing(tmp_path_factory.mktemp("host") / "data")


def test_a_cluster_is_opened_used_and_closed(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        fresh = await clusters.grant(cluster, fresh=True)
        shared = await clusters.grant(cluster, fresh=False)
        async with await clusters.client(cluster) as client:
            assert await client.submit(sum, [1, 2, 3]) == 6
            assert len((await client.scheduler.identity())["workers"]) == 2
        await until(lambda: clusters.heard(ClusterStatus, cluster=cluster, workers=2), what="a status")
        assert {fresh, shared} <= set(scratch(clusters.server.data_dir))
        assert (await clusters.take(fresh)).why == "taken back"
        await clusters.take(shared)
        assert (await clusters.close(cluster)).why == "closed"
        await until(lambda: not scratch(clusters.server.data_dir), what="the last folder to go")

    agent(scene)


def test_orders_can_be_repeated(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        send = clusters.server.send
        await send(OpenCluster(cluster, 1, "default", cluster))
        await clusters.until(ClusterOpened, cluster=cluster, count=2)
        assert len({frame.address for frame in clusters.heard(ClusterOpened, cluster=cluster)}) == 1
        lease = await clusters.grant(cluster)
        await send(GrantSlots(lease, cluster, 1, "default", "again", 1, fresh=True))
        await clusters.until(SlotsJoined, lease=lease, count=2)
        assert len({frame.address for frame in clusters.heard(SlotsJoined, lease=lease)}) == 1
        await send(TakeSlots(lease), TakeSlots(lease))
        await clusters.until(SlotsLeft, lease=lease)
        await send(TakeSlots(lease), GrantSlots(lease, cluster, 1, "default", "again", 1, fresh=True))
        await clusters.until(SlotsLeft, lease=lease, count=3)
        await clusters.close(cluster)
        await send(OpenCluster(cluster, 1, "default", cluster))
        await clusters.until(ClusterGone, cluster=cluster, count=2)
        assert len(clusters.heard(ClusterOpened, cluster=cluster)) == 2
        await send(TakeSlots("never"))
        assert "does not have it" in (await clusters.until(SlotsLeft, lease="never")).why

    agent(scene)


def test_a_later_epoch_takes_the_place_of_an_earlier_one(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(cluster)
        await clusters.open(cluster, epoch=2)
        await clusters.until(ClusterGone, cluster=cluster, epoch=1)
        assert "scheduler" in (await clusters.until(SlotsLeft, lease=lease)).why
        await clusters.server.send(OpenCluster(cluster, 1, "default", cluster))
        await clusters.until(ClusterGone, cluster=cluster, epoch=1, count=2)
        await clusters.close(cluster, epoch=2)

    agent(scene)


def test_slots_of_a_scheduler_that_is_not_here(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        lease = await clusters.grant("nowhere", wait=False)
        assert "scheduler is not here" in (await clusters.until(SlotsLeft, lease=lease)).why

    agent(scene)


def test_a_worker_of_another_agents_scheduler_makes_its_own_key(agent: Any, tmp_path: Path) -> None:
    async def scene(clusters: Clusters) -> None:
        async with fleet(tmp_path / "data", nworkers=1) as (server, _):
            others = Clusters(server)
            cluster = await others.open()
            opened = await others.until(ClusterOpened, cluster=cluster)
            lease = await clusters.grant(cluster, address=opened.address, ca=opened.ca, wait=False)
            wish = await clusters.until(WantSignature, lease=lease)
            assert b"PRIVATE" not in wish.csr
            await server.send(Sign(77, cluster, 1, "worker", wish.csr))
            signed = await others.until(Signed, request=77)
            await clusters.server.send(Signature(lease, signed.certificate, signed.ca))
            await clusters.until(SlotsJoined, lease=lease)
            async with await others.client(cluster) as client:
                assert await client.submit(sum, [1, 2]) == 3
            await others.close(cluster)
            await clusters.until(SlotsLeft, lease=lease)

    agent(scene)


def test_what_is_no_request_is_not_signed(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        _key, csr = make_request()
        spoilt = csr[:200] + (b"A" if csr[200:201] != b"A" else b"B") + csr[201:]
        for number, request in enumerate((b"", b"nonsense", spoilt, csr * 100), start=1000):
            await clusters.server.send(Sign(number, cluster, 1, "client", request))
            refused = await clusters.until(Signed, request=number)
            assert not refused.certificate
            assert refused.why
        await clusters.server.send(Sign(1100, cluster, 2, "client", csr))
        assert "not here" in (await clusters.until(Signed, request=1100)).why
        await clusters.close(cluster)

    agent(scene)


def test_a_cluster_that_cannot_start_says_why(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open(wait=False, preload=["there_is_no_such_module"])
        lease = await clusters.grant(cluster, wait=False)
        assert "there_is_no_such_module" in (await clusters.until(ClusterGone, cluster=cluster)).why
        await clusters.until(SlotsLeft, lease=lease)
        cluster = await clusters.open()
        lease = await clusters.grant(cluster, wait=False, preload=["nor_this_one"])
        assert "nor_this_one" in (await clusters.until(SlotsLeft, lease=lease)).why
        await clusters.close(cluster)
        await until(lambda: not scratch(clusters.server.data_dir), what="the last folder to go")

    agent(scene)


def test_retired_workers_leave_their_data_behind(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        first, second = await clusters.grant(cluster), await clusters.grant(cluster)
        async with await clusters.client(cluster) as client:
            workers = (await client.scheduler.identity())["workers"]
            address = (await clusters.until(SlotsJoined, lease=first)).address
            name = str(workers[address]["name"])
            futures = await client.scatter(list(range(10)), workers=[address])
            await clusters.server.send(RetireWorkers(cluster, 1, [name]))
            assert (await clusters.until(Retired, cluster=cluster)).workers == [name]
            await clusters.take(first)
            assert await client.gather(futures) == list(range(10))
            assert {future.status for future in futures} == {"finished"}
        await clusters.take(second)
        await clusters.close(cluster)

    agent(scene)


def test_a_client_can_restart_its_cluster(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(cluster)
        async with await clusters.client(cluster) as client:
            future = client.submit(os.getpid)
            await future
            await client.restart(timeout=30)
            assert future.status == "cancelled"
            assert await client.submit(sum, [1]) == 1
        assert not clusters.heard(SlotsLeft, lease=lease)
        await clusters.take(lease)
        await clusters.close(cluster)

    agent(scene)


def _meets(path: str) -> str:
    Path(path, "begun").touch()
    while not Path(path, "end").exists():
        time.sleep(0.01)
    return "ended"


def test_tasks_that_do_not_end_cost_their_process_and_blame_nobody(agent: Any, tmp_path: Path) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(cluster, fresh=False)
        address = (await clusters.until(SlotsJoined, lease=lease)).address
        gates = [tmp_path / str(n) for n in range(2)]
        attempts = [await clusters.server.start("wait_for", path=str(gate)) for gate in gates]
        async with await clusters.client(cluster) as client:
            future = client.submit(_meets, str(tmp_path), workers=[address])
            await until((tmp_path / "begun").exists, what="the task")
            assert future.status == "pending"
            left = await clusters.take(lease, grace_s=0.2)
        assert left.why == "taken back"
        for gate in gates:
            gate.touch()
        outcomes = [await clusters.server.outcome(attempt) for attempt in attempts]
        assert [outcome.blame for outcome in outcomes] == ["none", "none"]
        assert {str(outcome.state) for outcome in outcomes} <= {"lost", "succeeded"}
        lost = [outcome.failure.message for outcome in outcomes if outcome.failure is not None]
        assert all("had left it did not end in time" in message for message in lost)
        await clusters.close(cluster)
        assert await clusters.server.value("double", n=4) == 8

    agent(scene)


def test_tenants_share_no_process(agent: Any) -> None:
    async def scene(clusters: Clusters) -> None:
        server = clusters.server

        async def pids(tenant: str) -> set[int]:
            found = set()
            for _ in range(4):
                start = msgspec.structs.replace(server.make_start("pid"), tenant=tenant)
                await server.send(start)
                outcome = await server.outcome(start)
                if outcome.body is not None:
                    found.add(int(outcome.body))
            return found

        cluster = await clusters.open()
        lease = await clusters.grant(cluster, fresh=False, tenant="b")
        async with await clusters.client(cluster) as client:
            member = await client.submit(os.getpid)
        mine, theirs = await pids("a"), await pids("b")
        assert mine
        assert theirs
        assert not mine & (theirs | {member})
        await clusters.take(lease)
        await clusters.close(cluster)

    agent(scene)


def _nested(n: int) -> int:
    with worker_client() as client:
        return sum(client.gather(client.map(abs, range(-n, 0))))


def test_leases_and_attempts_have_no_more_threads_than_there_are(agent: Any, tmp_path: Path) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        leases = [await clusters.grant(cluster, threads=2, fresh=fresh) for fresh in (True, False)]
        start = await clusters.server.start("double", n=1)
        assert str((await clusters.server.outcome(start)).state) == "cancelled", "it is given back: nothing is free"
        async with await clusters.client(cluster) as client:
            assert await client.submit(_nested, 10) == 55
        await clusters.take(leases[0])
        gate = tmp_path / "gate"
        waits = [await clusters.server.start("wait_for", path=str(gate)) for _ in range(2)]
        late = await clusters.grant(cluster, threads=2, wait=False)
        await asyncio.sleep(0)
        assert not clusters.heard(SlotsJoined, lease=late)
        gate.touch()
        for each in waits:
            await clusters.server.outcome(each)
        await clusters.until(SlotsJoined, lease=late)
        for lease in (late, leases[1]):
            await clusters.take(lease)
        lease = await clusters.grant(cluster, threads=5, wait=False)
        assert "4 slots" in (await clusters.until(SlotsLeft, lease=lease)).why
        await clusters.close(cluster)

    agent(scene)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_spilling_goes_where_the_cluster_wants(agent: Any, tmp_path: Path, *, elsewhere: bool) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        config = {"temporary-directory": str(tmp_path)} if elsewhere else {}
        lease = await clusters.grant(cluster, config=config)
        async with await clusters.client(cluster) as client:
            folder = Path(await client.submit(_local_directory))
        assert folder.is_relative_to(tmp_path if elsewhere else clusters.server.data_dir / "scratch" / lease)
        await clusters.take(lease)
        await clusters.close(cluster)
        folders.append(folder)

    folders: list[Path] = []
    agent(scene)
    assert not folders[0].exists()
    assert list(tmp_path.iterdir()) == []


def _local_directory() -> str:
    from distributed import get_worker

    return str(get_worker().local_directory)


def test_without_spares_all_goes_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=1, spares=0) as (server, _agent):
            clusters = Clusters(server)
            cluster = await clusters.open()
            await clusters.grant(cluster, fresh=False)
            async with await clusters.client(cluster) as client:
                assert await client.submit(sum, [1, 2, 3]) == 6
            await clusters.close(cluster)

    run(main)
