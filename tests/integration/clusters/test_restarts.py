"""A client restarts the workers of its cluster: what nannies do, done by the agent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import get_worker
from tests.integration.agent.fake_server import until
from tests.integration.clusters.drive import Clusters, Play, playing, scratch

from dask_fleet.protocol.cluster_frames import SlotsJoined, SlotsLeft


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """Runs a scene with an agent of four slots."""
    yield from playing(tmp_path_factory.mktemp("restarts") / "data")


def _endless(began: str) -> None:
    Path(began).touch()
    while True:
        time.sleep(0.01)


def _until(began: str, end: str) -> None:
    Path(began).touch()
    while not Path(end).exists():
        time.sleep(0.01)


def _leave_traces(path: str) -> int:
    os.environ["LEFT_BEHIND"] = "1"
    Path(get_worker().local_directory, "left-behind").touch()
    Path(path).write_text(get_worker().local_directory)
    return os.getpid()


def _see() -> tuple[int, str | None, str | None, float, int]:
    worker = get_worker()
    limit = worker.memory_manager.memory_limit
    found = worker.state.total_resources["GPU"]
    return os.getpid(), os.environ.get("LEFT_BEHIND"), os.environ.get("GIVEN"), found, limit


def test_a_restart_replaces_the_process_on_the_same_lease(agent: Play, tmp_path: Path) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(
            cluster, threads=1, env={"GIVEN": "yes"}, resources={"GPU": 2.0}, memory_limit_bytes=700 << 20
        )
        async with await clusters.client(cluster) as client:
            before = await client.submit(_leave_traces, str(tmp_path / "where"), pure=False)
            client.submit(_endless, str(tmp_path / "began"), pure=False)
            await until((tmp_path / "began").exists, what="the task")
            await client.restart(timeout=60)
            after, left_behind, given, gpus, limit = await client.submit(_see, pure=False)
            assert after != before
            assert (left_behind, given, gpus, limit) == (None, "yes", 2.0, 700 << 20)
            assert not os.path.exists(f"{(tmp_path / 'where').read_text()}/left-behind")  # noqa: ASYNC240, PTH110
            with pytest.raises(ProcessLookupError):
                os.kill(before, 0)
        assert len(clusters.heard(SlotsJoined, lease=lease)) == 2
        assert not clusters.heard(SlotsLeft, lease=lease)
        assert (await clusters.take(lease)).why == "taken back"
        await clusters.close(cluster)
        await until(lambda: not scratch(clusters.server.data_dir), what="the last folder to go")

    agent(scene)


def test_all_four_slots_are_there_again_after_many_restarts(agent: Play) -> None:
    """A slot that was counted twice, or not given back, would be missing for the last lease."""

    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        leases = [await clusters.grant(cluster, threads=2) for _ in range(2)]
        async with await clusters.client(cluster) as client:
            pids: set[int] = set()
            for _ in range(3):
                found = set((await client.run(os.getpid)).values())
                assert len(found) == 2
                assert not found & pids
                pids |= found
                await client.restart(timeout=60)
            before = await client.run(os.getpid)
            one, other = before
            answer = await client.restart_workers([one], timeout=60)
            assert answer == {one: "OK"}
            there = await client.run(os.getpid)  # the fresh one may have the port of the one before
            assert len(there) == 2
            assert there[other] == before[other]
            assert before[one] not in there.values()
        for lease in leases:
            await clusters.take(lease)
        whole = await clusters.grant(cluster, threads=4)
        await clusters.take(whole)
        await clusters.close(cluster)
        assert await clusters.server.value("double", n=4) == 8

    agent(scene)


def test_a_lease_that_is_taken_back_while_it_restarts_is_over(agent: Play) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(cluster)
        async with await clusters.client(cluster) as client:
            (address,) = await client.run(os.getpid)
            asked = client.scheduler.restart_workers(
                workers=[address], wait_for_workers=False, timeout=60, stimulus_id="a test"
            )
            assert await asked == {address: "OK"}
            assert (await clusters.take(lease)).why == "taken back"
        await clusters.close(cluster)
        await until(lambda: not scratch(clusters.server.data_dir), what="the last folder to go")

    agent(scene)


def test_in_a_shared_process_the_next_worker_has_all_threads_while_old_tasks_end(agent: Play, tmp_path: Path) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(cluster, fresh=False, threads=2)
        async with await clusters.client(cluster) as client:
            for n in range(2):
                client.submit(_until, str(tmp_path / f"began-{n}"), str(tmp_path / "end"), pure=False)
                await until((tmp_path / f"began-{n}").exists, what="the task")
            before = next(iter((await client.run(os.getpid)).values()))
            await client.restart(timeout=60)
            meet = [str(tmp_path / f"meet-{n}") for n in range(2)]
            met = [client.submit(_until, mine, other, pure=False) for mine, other in zip(meet, reversed(meet), strict=True)]
            await client.gather(met)  # both threads at once, though the old tasks go on
            assert not (tmp_path / "end").exists()
            (tmp_path / "end").touch()
            assert await client.submit(os.getpid, pure=False) == before
        left = await clusters.take(lease)
        assert left.why == "taken back"
        await clusters.close(cluster)
        assert await clusters.server.value("double", n=4) == 8

    agent(scene)


def test_in_a_shared_process_tasks_that_do_not_end_cost_their_process(agent: Play, tmp_path: Path) -> None:
    async def scene(clusters: Clusters) -> None:
        cluster = await clusters.open()
        lease = await clusters.grant(cluster, fresh=False)
        async with await clusters.client(cluster) as client:
            client.submit(_endless, str(tmp_path / "began"), pure=False)
            await until((tmp_path / "began").exists, what="the task")
            await client.restart(timeout=60)
            assert await client.submit(sum, [1], pure=False) == 1
            # Ten seconds later:
            left = await clusters.until(SlotsLeft, lease=lease)
            assert "from before a restart" in left.why
        await clusters.close(cluster)
        assert await clusters.server.value("double", n=4) == 8

    agent(scene)
