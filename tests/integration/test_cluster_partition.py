"""Scenario 10: a cluster whose workers are on two hosts, and a wire between them that is cut and mended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from distributed import Client
from tests.alive import alive
from tests.integration.core_fleet import CoreFleet
from tests.integration.namespaces import Side, two_hosts
from tests.integration.remote_agent import RemoteAgent, connected, remote_agent

from dask_fleet import FleetCluster

PATIENCE_S = 120.0
HEALED_S = 30.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Side, Side]]:
    try:
        context = two_hosts()
        sides = context.__enter__()
    except OSError as exc:
        pytest.skip(f"no network namespaces here: {exc}")
    try:
        yield sides
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def fleet(hosts: tuple[Side, Side], tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreFleet]:
    here, _ = hosts
    args = ("--tls", "auto", "--host", here.address, "--nworkers", "2", "--nthreads", "1", "--spare-clusters", "0")
    with here.entered(), CoreFleet(tmp_path_factory.mktemp("partition"), args=args) as made:
        yield made


@pytest.fixture(scope="module")
def far(fleet: CoreFleet, hosts: tuple[Side, Side], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteAgent]:
    folder = tmp_path_factory.mktemp("far")
    with remote_agent(fleet, folder, prefix=hosts[1].prefix, args=("--name", "far")) as agent:
        fleet.until(lambda: connected(fleet, "far"), "the far agent", timeout_s=40)
        yield agent


@pytest.mark.slow
def test_a_cluster_goes_on_beyond_a_cut_wire_and_gets_its_slots_back(
    fleet: CoreFleet, far: RemoteAgent, hosts: tuple[Side, Side], record_property: Callable[[str, object], None]
) -> None:
    """No side records what the other has; the worker beyond the wire is ended, and another one takes its place.

    That the wire is cut, Dask notices by its own time-out of 30 s.
    """
    here, there = hosts
    where: dict[str, Any] = {"url": fleet.url, "token": fleet.token, "fingerprint": fleet.fingerprint, "quiet": True}

    def document() -> dict[str, Any]:
        found: dict[str, Any] = fleet.request("GET", f"/v1/clusters/{made.cluster_id}").json()
        return found

    with here.entered(), FleetCluster(3, 1, **where) as made, Client(made, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=PATIENCE_S)
        before = document()
        assert not before["agent"].startswith("far-")
        workers = client.run(os.getpid)
        beyond = {child.pid for child in psutil.Process(far.popen.pid).children(recursive=True)}
        (old,) = [pid for pid in workers.values() if pid in beyond]
        kept = client.map(lambda n: n * n, range(60), pure=False)
        fleet.until(lambda: all(future.done() for future in kept), "data on all workers", timeout_s=PATIENCE_S)
        there.cut()
        here.cut()
        cut_at = time.monotonic()
        try:
            total = client.submit(sum, kept, pure=False)
            assert total.result(timeout=PATIENCE_S) == sum(n * n for n in range(60))
            result_s = time.monotonic() - cut_at
            fleet.until(lambda: document()["workers"] == 2, "the worker beyond to be given up", timeout_s=PATIENCE_S)
        finally:
            here.heal()
            there.heal()
        healed_at = time.monotonic()
        fleet.until(lambda: document()["workers"] == 3, "another worker beyond", timeout_s=PATIENCE_S)
        healed_s = time.monotonic() - healed_at
        fleet.until(lambda: not alive([old]), "the old one's end", timeout_s=PATIENCE_S)
        client.wait_for_workers(3, timeout=PATIENCE_S)
        assert client.submit(sum, kept, pure=False).result(timeout=PATIENCE_S) == sum(n * n for n in range(60))
        after = document()
        assert (after["epoch"], after["address"]) == (1, before["address"])
    fleet.until(lambda: not fleet.request("GET", "/v1/clusters").json()["clusters"], "it to close", timeout_s=60)
    fleet.until(lambda: all(one["free"] == one["slots"] for one in fleet.status()["agents"]), "all slots", timeout_s=60)
    record_property("figures", f"result {result_s:.1f} s after the cut, another worker {healed_s:.1f} s after healing")
    assert healed_s < HEALED_S
