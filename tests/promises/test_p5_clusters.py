"""P5 and P4 for clusters: what ruins one cluster touches no other, and what is left of an old epoch changes nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, KilledWorker
from tests.alive import alive, listening
from tests.promises.form import FULL, Record

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

TASKS = 400 if FULL else 60
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    args = ("--no-services", "--nworkers", "6", "--nthreads", "1")
    env = {"FLEET_SPARE_CLUSTERS": "0"}  # slots are counted
    with ServedFleet([], tmp_path_factory.mktemp("clusters") / "data", args=args, env=env) as served:
        yield served


def cluster(fleet: ServedFleet, n_workers: int = 2, **options: Any) -> FleetCluster:
    return FleetCluster(n_workers, 1, url=fleet.url, token=fleet.token, quiet=True, **options)


def poison() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hog() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * (8 << 20)))
        time.sleep(0.001)


@pytest.mark.parametrize("bad", [poison, hog])
def test_what_kills_one_clusters_workers_touches_no_other(
    fleet: ServedFleet, bad: Callable[[], None], record_property: Record
) -> None:
    def triple(n: int) -> int:
        time.sleep(0.05)
        return 3 * n

    def ruin() -> None:  # by value: the workers do not have this module
        bad_here()

    bad_here = _by_value(bad)
    config = {"distributed.scheduler.allowed-failures": 1}
    with (
        cluster(fleet) as good, Client(good, set_as_default=False) as honest,
        cluster(fleet, 1, memory_limit="400MiB", config=config) as ruined, Client(ruined, set_as_default=False) as other,
    ):  # fmt: skip
        honest.wait_for_workers(2, timeout=PATIENCE_S)
        other.wait_for_workers(1, timeout=PATIENCE_S)
        pids, address = honest.run(os.getpid), honest.scheduler.address
        doomed = other.submit(ruin, pure=False)
        futures = honest.map(triple, range(TASKS), pure=False)
        assert honest.gather(futures) == [3 * n for n in range(TASKS)]
        with pytest.raises(KilledWorker):
            doomed.result(timeout=PATIENCE_S)
        assert honest.run(os.getpid) == pids, "the same processes as before"
        assert honest.scheduler.address == address
        # The ruined one has got slots in place of those that died, and is of use again.
        assert other.submit(pow, 2, 10, pure=False).result(timeout=PATIENCE_S) == 1024
        story = fleet.request("GET", f"/v1/clusters/{ruined.cluster_id}/events").json()["events"]
        ends = [event["data"].get("reason", "") for event in story if event["kind"] in {"slots_released", "slots_lapsed"}]
    record_property("figures", f"{TASKS} of {TASKS} right beside {bad.__name__}; the other's workers ended with: {ends}")
    assert len(ends) >= 2


def _by_value(function: Callable[[], None]) -> Callable[[], None]:
    """Return the function as one that needs no module of ours."""
    import types

    modules = {"os": os, "signal": signal, "time": time, "__builtins__": __builtins__}
    return types.FunctionType(function.__code__, modules, function.__name__)


def processes_listening(fleet: ServedFleet, port: int) -> list[int]:
    agent = fleet.agent_pid()
    assert agent is not None
    return listening(agent, port)


def test_the_workers_of_an_earlier_epoch_are_gone(fleet: ServedFleet, record_property: Record) -> None:
    """It is killed; what was its worker is gone, and the story tells one epoch after the other."""
    with cluster(fleet) as made, cluster(fleet) as beside:
        with Client(made, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=PATIENCE_S)
            old = set(client.run(os.getpid).values())
            port = int(client.scheduler.address.rpartition(":")[2])
        with Client(beside, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=PATIENCE_S)
            theirs = client.run(os.getpid)
        (pid,) = processes_listening(fleet, port)
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        def replaced() -> bool:
            document = fleet.request("GET", f"/v1/clusters/{made.cluster_id}").json()
            return bool(document["epoch"] == 2 and document["status"] == "running" and document["workers"] == 2)

        fleet.until(replaced, "the second epoch with both workers", timeout_s=PATIENCE_S)
        took = time.monotonic() - begun
        fleet.until(lambda: not alive(old), "the old workers to be gone", timeout_s=60)
        with Client(beside, set_as_default=False) as client:
            assert client.run(os.getpid) == theirs
        story = fleet.request("GET", f"/v1/clusters/{made.cluster_id}/events").json()["events"]
    kinds = [(event["epoch"], event["kind"]) for event in story]
    assert kinds.count((1, "opened")) == kinds.count((2, "opened")) == 1
    joined = [event["data"]["worker"] for event in story if event["kind"] == "slots_joined"]
    assert len(set(joined)) == len(joined) == 4, "no worker's name is used twice, over all epochs"
    record_property("figures", f"both workers back {took:.1f} s after the kill")


def test_a_stopped_worker_keeps_its_slots_until_it_is_gone(fleet: ServedFleet, record_property: Record) -> None:
    """SIGSTOP a worker process of a cluster that is closed meanwhile; its slots are given out only when it is gone."""
    with cluster(fleet, 2) as made, Client(made, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE_S)
        stopped = next(iter(client.run(os.getpid).values()))
        os.kill(stopped, signal.SIGSTOP)
    try:
        fleet.until(
            lambda: not fleet.request("GET", "/v1/clusters").json()["clusters"], "the cluster to close", timeout_s=PATIENCE_S
        )
        # Closed means that nothing of it is left, not even one who cannot hear.
        assert not alive([stopped])
    finally:
        if alive([stopped]):
            os.kill(stopped, signal.SIGCONT)
    fleet.until(lambda: fleet.status()["agents"][0]["free"] == 6, "all slots to be free", timeout_s=30)
    record_property("figures", "a stopped worker process is ended before its slots are given out")
