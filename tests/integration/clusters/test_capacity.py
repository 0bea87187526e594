"""Memory and named resources of a real host are lent to clusters once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, get_worker

from dask_fleet import FleetCluster
from dask_fleet.model.errors import ClusterImpossible
from dask_fleet.testing.served import ServedFleet

MIB = 1 << 20


def _limit() -> int:
    return int(get_worker().memory_manager.memory_limit)


def test_workers_wait_for_memory_and_resources_that_others_have(tmp_path: Path) -> None:
    args = ("--no-services", "--nworkers", "2", "--nthreads", "2", "--memory-limit", "1GiB", "--resources", "GPU=1")
    with ServedFleet([], tmp_path / "data", args=args, env={"FLEET_SPARE_CLUSTERS": "0"}) as fleet:
        options: dict[str, Any] = {"url": fleet.url, "token": fleet.token, "quiet": True, "dashboard": False}

        def free() -> int:
            return int(fleet.status()["agents"][0]["free"])

        with FleetCluster(n_workers=2, resources={"GPU": 1, "label": 3}, **options) as cluster, Client(cluster) as client:
            assert client.submit(_limit, resources={"GPU": 1, "label": 3}).result(60) == 512 * MIB  # of one of four threads
            page = fleet.request("GET", f"/v1/clusters/{cluster.cluster_id}").json()
            assert (page["workers"], free()) == (1, 3)
            assert "with GPU=1" in page["waiting_for"]
            with (
                FleetCluster(n_workers=2, memory_limit="768MiB", **options) as big,
                Client(big, set_as_default=False) as other,  # outlives what the first client speaks to
            ):
                assert other.submit(_limit).result(60) == 768 * MIB
                page = fleet.request("GET", f"/v1/clusters/{big.cluster_id}").json()
                assert (page["workers"], free()) == (1, 1), "its worker has two slots for its memory, the other finds one"
                assert "for their memory" in page["waiting_for"]
                cluster.close()
                big.wait_for_workers(2, timeout=60)
        for impossible, said in (({"memory_limit": "3GiB"}, "smaller memory_limit"), ({"resources": {"GPU": 2}}, "GPU=1")):
            with pytest.raises(ClusterImpossible, match=said):
                FleetCluster(n_workers=1, **impossible, **options)
        deadline = time.monotonic() + 60
        while free() != 4:
            assert time.monotonic() < deadline, "slots did not come back"
            time.sleep(0.05)
