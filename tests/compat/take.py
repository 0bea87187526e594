"""The cluster under test: a fleet's, or for comparison Dask's own (``COMPAT=local``), over TLS both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed

from dask_fleet.testing.served import ServedFleet

LOCAL = os.environ.get("COMPAT") == "local"
"""Whether the programs themselves are checked: all that does not speak of a fleet must pass on Dask's own cluster, too."""

WORKERS, THREADS = 2, 2


class Served:
    """A fleet without services that clusters are taken from."""

    def __init__(self, fleet: ServedFleet) -> None:
        self.fleet = fleet

    def cluster(self, n_workers: int = WORKERS, threads_per_worker: int = THREADS, **options: Any) -> Any:
        """Return a cluster, for a ``with`` block."""
        from dask_fleet import FleetCluster

        return FleetCluster(
            n_workers, threads_per_worker, url=self.fleet.url, token=self.fleet.token, **{"quiet": True, **options}
        )


@contextlib.contextmanager
def served(data_dir: Path, *args: str) -> Iterator[Served]:
    with ServedFleet([], data_dir, args=("--no-services", *(args or ("--nworkers", "8", "--nthreads", "1")))) as fleet:
        yield Served(fleet)


@contextlib.contextmanager
def local_cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=WORKERS, threads_per_worker=THREADS, protocol="tls", security=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster
