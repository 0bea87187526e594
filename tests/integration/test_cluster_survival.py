"""Users' clusters on two agents, of which any may be lost, and under a server that is away. Scenarios 4 and 9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, Future
from tests.alive import alive
from tests.integration.remote_agent import remote_agent

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

PATIENCE_S = 90.0
FAR = ("--name", "far", "--nworkers", "2", "--nthreads", "1")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    args = ("--no-services", "--nworkers", "2", "--nthreads", "1")
    env = {"FLEET_SPARE_CLUSTERS": "0"}  # slots are counted
    with ServedFleet([], tmp_path_factory.mktemp("survival") / "data", args=args, env=env) as served:
        yield served


def cluster(fleet: ServedFleet, n_workers: int, **options: Any) -> FleetCluster:
    return FleetCluster(n_workers, 1, url=fleet.url, token=fleet.token, quiet=True, **options)


def document(fleet: ServedFleet, one: FleetCluster) -> dict[str, Any]:
    found: dict[str, Any] = fleet.request("GET", f"/v1/clusters/{one.cluster_id}").json()
    return found


def free_slots(fleet: ServedFleet) -> dict[str, int]:
    return {agent["name"]: agent["free"] for agent in fleet.status()["agents"] if agent["connected"]}


def until_has(fleet: ServedFleet, one: FleetCluster, workers: int) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = document(fleet, one)
        return found if found["status"] == "running" and found["workers"] == workers else None

    found: dict[str, Any] = fleet.until(look, f"{workers} workers", timeout_s=PATIENCE_S)
    return found


def slow_squares(client: Client, n: int) -> list[Future]:
    def square(n: int) -> int:  # by value: agents from elsewhere do not have this module
        time.sleep(0.02)
        return n * n

    return list(client.map(square, range(n), pure=False))


def computes(client: Client) -> bool:
    return bool(client.submit(lambda: 6 * 7, pure=False).result(timeout=PATIENCE_S) == 42)


def refused(fleet: ServedFleet) -> int:
    return (fleet.data_dir / "serve.err").read_text("utf-8", "replace").count("action=stale_epoch")


def pids(client: Client) -> set[int]:
    return set(client.run(os.getpid).values())


@pytest.mark.parametrize("lost", ["local", "far"])
def test_a_lost_agent_costs_a_cluster_its_workers_there_and_no_result(
    fleet: ServedFleet, tmp_path: Path, lost: str
) -> None:
    """Scenario 4: kill -9 of the agent that does not run the scheduler; its successor gives the cluster other slots."""
    with ExitStack() as stack:
        far = stack.enter_context(remote_agent(fleet, tmp_path / "far", args=FAR))  # type: ignore[arg-type]
        fleet.until(lambda: free_slots(fleet) == {"local": 2, "far": 2}, "both agents", timeout_s=PATIENCE_S)
        if lost == "local":  # so that the next scheduler is opened on the far agent, which has more room
            filler = stack.enter_context(cluster(fleet, 1))
            assert document(fleet, filler)["agent"].startswith("local-")
        made = stack.enter_context(cluster(fleet, 3))
        client = stack.enter_context(Client(made, set_as_default=False))
        before = until_has(fleet, made, 3)
        assert not before["agent"].startswith(f"{lost}-")
        kept = slow_squares(client, 60)
        fleet.until(lambda: all(future.done() for future in kept), "data on all workers", timeout_s=PATIENCE_S)
        running = slow_squares(client, 100)
        victim = far.popen.pid if lost == "far" else fleet.agent_pid()
        assert victim is not None
        theirs = {process.pid for process in psutil.Process(victim).children(recursive=True)}
        os.kill(victim, signal.SIGKILL)
        if lost == "far":
            far.popen.wait(10)
            stack.enter_context(remote_agent(fleet, tmp_path / "far", args=FAR))  # type: ignore[arg-type]
        total = client.submit(sum, kept, pure=False)
        assert total.result(timeout=PATIENCE_S) == sum(n * n for n in range(60)), "what was lost is computed again"
        assert client.gather(running) == [n * n for n in range(100)]
        after = until_has(fleet, made, 3)
        assert (after["epoch"], after["address"]) == (1, before["address"])
        client.wait_for_workers(3, timeout=PATIENCE_S)
        assert not pids(client) & theirs
        fleet.until(lambda: not alive(theirs), "no process to be left", timeout_s=10)
    fleet.until(lambda: free_slots(fleet) == {"local": 2}, "all slots of the one that is left", timeout_s=PATIENCE_S)


@pytest.mark.slow
def test_an_agent_that_slept_past_its_lease_ends_what_is_not_its_own_any_more(fleet: ServedFleet, tmp_path: Path) -> None:
    """Scenario 9: SIGSTOP of an agent; its lease lapses and its slots are the cluster's no more; SIGCONT: they are again,
    under other leases, in other processes."""
    with (
        remote_agent(fleet, tmp_path / "far", args=FAR) as far,  # type: ignore[arg-type]
        ExitStack() as stack,
    ):
        fleet.until(lambda: free_slots(fleet) == {"local": 2, "far": 2}, "both agents", timeout_s=PATIENCE_S)
        made = stack.enter_context(cluster(fleet, 3))
        client = stack.enter_context(Client(made, set_as_default=False))
        until_has(fleet, made, 3)
        client.wait_for_workers(3, timeout=PATIENCE_S)
        old = {pid for pid in pids(client) if pid in {child.pid for child in psutil.Process(far.popen.pid).children(True)}}
        assert len(old) == 1
        stale = refused(fleet)
        os.kill(far.popen.pid, signal.SIGSTOP)
        try:
            assert "slot" in until_has(fleet, made, 2)["waiting_for"]
            assert computes(client)
        finally:
            os.kill(far.popen.pid, signal.SIGCONT)
        until_has(fleet, made, 3)
        fleet.until(lambda: not alive(old), "the old worker to be gone", timeout_s=30)
        client.wait_for_workers(3, timeout=PATIENCE_S)
        assert len(pids(client)) == 3
        assert refused(fleet) > stale
        story = fleet.request("GET", f"/v1/clusters/{made.cluster_id}/events").json()["events"]
        assert [event["kind"] for event in story].count("slots_lapsed") == 1
    fleet.until(lambda: free_slots(fleet) == {"local": 2}, "all slots", timeout_s=PATIENCE_S)


def test_clients_compute_while_the_server_is_dead_and_the_next_one_takes_up(fleet: ServedFleet) -> None:
    """Kill -9 of the server: schedulers, workers and clients go on; the restarted one lists, scales and closes."""
    with cluster(fleet, 1, name="mine") as made, Client(made, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=PATIENCE_S)
        mine, before = pids(client), document(fleet, made)
        running = slow_squares(client, 50)
        fleet.kill9()
        assert client.gather(running) == [n * n for n in range(50)]
        assert computes(client)
        fleet.restart()
        after = until_has(fleet, made, 1)
        assert (after["epoch"], after["address"]) == (before["epoch"], before["address"])
        listed = subprocess.run(
            [str(Path(sys.executable).with_name("dask-fleet")), "clusters", "list"],
            env={**fleet.environment, "FLEET_URL": fleet.url, "FLEET_TOKEN": fleet.token},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "mine" in listed.stdout
        made.scale(2)
        client.wait_for_workers(2, timeout=PATIENCE_S)
        assert mine < pids(client)
        assert computes(client)
    fleet.until(lambda: not fleet.request("GET", "/v1/clusters").json()["clusters"], "it to close", timeout_s=PATIENCE_S)
    fleet.until(lambda: free_slots(fleet) == {"local": 2}, "both slots", timeout_s=PATIENCE_S)
    fleet.until(lambda: not alive(mine), "its processes to end", timeout_s=PATIENCE_S)


def test_server_and_agent_killed_together(fleet: ServedFleet) -> None:
    """Nothing of the cluster is left but its record; it gets another scheduler and other slots, and closes as any."""
    with cluster(fleet, 2) as made, Client(made, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE_S)
        agent = fleet.agent_pid()
        assert agent is not None
        theirs = {process.pid for process in psutil.Process(agent).children(recursive=True)}
        fleet.kill9()
        os.kill(agent, signal.SIGKILL)
        fleet.until(lambda: not alive(theirs), "no process to be left", timeout_s=10)
        fleet.restart()
        after = until_has(fleet, made, 2)
        assert after["epoch"] == 2
        fleet.until(lambda: made.scheduler_address == after["address"], "it to be followed", timeout_s=PATIENCE_S)
        with Client(made, set_as_default=False) as again:
            assert computes(again)
    fleet.until(lambda: free_slots(fleet) == {"local": 2}, "both slots", timeout_s=PATIENCE_S)
