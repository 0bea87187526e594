"""Environment variables that every worker process is born with, as Dask's nannies set them for theirs."""

from __future__ import annotations

from collections.abc import MutableMapping
from types import MappingProxyType

WORKER_ENVIRONMENT = MappingProxyType(
    {
        # Of each library one thread for each thread of ours: there are as many of these as CPUs, and libraries that start as
        # many threads again spend their time waiting for one another (a matrix product on two CPUs took 3.7 times as long).
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # The C library keeps more freed memory otherwise, which looks like use to everything that limits it.
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
)
"""The C library and most others read theirs once, when the forkserver begins: too late for a worker process of its own."""


def set_worker_environment(environ: MutableMapping[str, str]) -> None:
    """Add what is missing, before the forkserver starts. What the operator has set stays."""
    for name, value in WORKER_ENVIRONMENT.items():
        environ.setdefault(name, value)
