"""What worker processes are born with."""

from __future__ import annotations

import dask
import distributed

from dask_fleet.agent.worker_environment import WORKER_ENVIRONMENT, set_worker_environment


def test_what_the_operator_has_set_stays() -> None:
    environ = {"OPENBLAS_NUM_THREADS": "8", "HOME": "/home/ada"}
    set_worker_environment(environ)
    assert environ == {**WORKER_ENVIRONMENT, "OPENBLAS_NUM_THREADS": "8", "HOME": "/home/ada"}


def test_it_is_what_a_nanny_of_dask_would_set() -> None:
    assert distributed.__version__
    nannys = dask.config.get("distributed.nanny.pre-spawn-environ")
    assert {name: str(value) for name, value in nannys.items()} == dict(WORKER_ENVIRONMENT)
