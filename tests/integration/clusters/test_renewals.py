"""Certificates that hold for seconds: all who show one live past several of them, and open connections all the while."""

from __future__ import annotations

import time
from pathlib import Path

from distributed import Client
from tests.integration.clusters.test_fleet_cluster import until

from dask_fleet import FleetCluster
from dask_fleet.client.cluster_key import validity_of
from dask_fleet.testing.served import ServedFleet

LIFETIME_S = 5
SERVICE = Path(__file__).with_name("service_renewals.py")
DEADLINE_S = 60.0


def test_schedulers_workers_and_clients_outlive_their_certificates(tmp_path: Path) -> None:
    args, env = ("--nworkers", "4", "--nthreads", "1"), {"FLEET_CERTIFICATE_LIFETIME": f"{LIFETIME_S}s"}
    go = tmp_path / "go"
    with ServedFleet([SERVICE], tmp_path / "data", args=args, env=env) as fleet:
        job = fleet.post("renewals/outlives", {"path": str(go)}).json()["job_id"]
        until(go.with_name("go.started").exists, "the job to use its cluster")
        options = {"url": fleet.url, "token": fleet.token, "quiet": True}
        with FleetCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
            first = cluster.security.tls_client_cert
            _, ends = validity_of(first)
            assert ends <= time.time() + LIFETIME_S
            (old,) = client.scheduler_info()["workers"]
            data = client.submit(lambda: [1, 2, 3], workers=[old])
            data.result(timeout=DEADLINE_S)
            seen: set[str] = set()

            def renewed() -> bool:
                seen.add(cluster.security.tls_client_cert)
                return len(seen) > 3 and time.time() > ends + 1

            until(renewed, "several certificates")
            # Connections that are new now: a worker to the scheduler, workers with each other, a client to both.
            cluster.scale(2)
            client.wait_for_workers(2, timeout=DEADLINE_S)
            (new,) = set(client.scheduler_info()["workers"]) - {old}
            assert client.submit(sum, data, workers=[new]).result(timeout=DEADLINE_S) == 6
            assert client.gather(data, direct=True) == [1, 2, 3]
            with Client(cluster, set_as_default=False) as another:
                assert another.submit(lambda: 3).result(timeout=DEADLINE_S) == 3
        go.touch()
        document = until(lambda: (job_ := fleet.job(job, wait=2))["status"] == "succeeded" and job_, "the job to end")
        assert document["attempt"] == 1
        result = fleet.request("GET", f"/v1/jobs/{job}/result").json()
        assert result["before"] == result["after"] == [1, 2, 3]
        assert result["seconds"] > LIFETIME_S
