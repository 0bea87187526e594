"""The sizes that a `FleetCluster` takes, and those that it refuses, saying what can be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.unit.client.cluster_server import DEADLINE_S, Remote, until

from dask_fleet import FleetCluster

NAN = math.nan


@pytest.fixture
def cluster(server: Remote) -> Iterator[FleetCluster]:
    server.set(workers=False)
    with FleetCluster(
        n_workers=0, name="sized", threads_per_worker=2, memory_limit="1GiB", quiet=True, timeout=1, **server.options
    ) as made:
        yield made


SIZES: list[tuple[dict[str, Any], int]] = [
    ({"n": np.int64(2)}, 2),
    ({"cores": 3}, 2),
    ({"cores": np.float64(4.5)}, 3),
    ({"memory": "2.5GiB"}, 3),
    ({"memory": 2**31}, 2),
    ({"memory": float(2**31)}, 2),
    ({"n": 1, "cores": 4, "memory": "3GiB"}, 3),
    ({"cores": 0}, 0),
    ({"memory": 0}, 0),
]


def test_what_can_be(cluster: FleetCluster) -> None:
    for asked, workers in SIZES:
        cluster.scale(**asked)
        assert cluster.n_workers == workers


NO_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"n": -1}, r"n must be a whole number of at least 0, not -1"),
    ({"n": 2.0}, r"n must be a whole number of at least 0, not 2\.0"),
    ({"n": NAN}, r"n must be a whole number of at least 0, not nan"),
    ({"n": True}, r"n must be a whole number"),
    ({"cores": -4}, r"cores must be a number of at least 0, not -4"),
    ({"cores": NAN}, r"cores must be a number of at least 0, not nan"),
    ({"cores": math.inf}, r"cores must be a number of at least 0, not inf"),
    ({"cores": "4"}, r"cores must be a number of at least 0, not '4'"),
    ({"cores": 10**400}, r"cores must be a number of at least 0"),
    ({"memory": -1}, r"memory must be a number of at least 0, not -1"),
    ({"memory": "-1GB"}, r"memory must be a size: '-1GB' is no size: write .*'2GiB'"),
    ({"memory": NAN}, r"memory must be a number of at least 0, not nan"),
]


def test_what_cannot_be_is_refused_and_changes_nothing(cluster: FleetCluster) -> None:
    cluster.scale(1)
    for asked, why in NO_SIZES:
        with pytest.raises(ValueError, match=why):
            cluster.scale(**asked)
        assert cluster.n_workers == 1


NO_BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"minimum": -1, "maximum": 2}, r"minimum must be a whole number of at least 0, not -1"),
    ({"minimum": 5, "maximum": 2}, r"maximum must be at least minimum: at most 2 workers and at least 5 cannot be"),
    ({"minimum": 1.5}, r"minimum must be a whole number"),
    ({"maximum": 2.5}, r"maximum must be a whole number"),
    ({"maximum": NAN}, r"maximum must be a whole number of at least 0, not nan"),
    ({"maximum": -math.inf}, r"maximum must be a whole number"),
    ({"minimum_cores": -2}, r"minimum_cores must be a number of at least 0, not -2"),
    ({"maximum_cores": NAN}, r"maximum_cores must be a number of at least 0, not nan"),
    ({"minimum_cores": 8, "maximum": 3}, r"at most 3 workers and at least 4 cannot be"),
    ({"minimum": 1, "maximum_cores": 1}, r"at most 0 workers and at least 1 cannot be"),
    ({"minimum_memory": "5GiB", "maximum_memory": "4GiB"}, r"at most 4 workers and at least 5 cannot be"),
]


def test_bounds_that_cannot_be_are_refused_and_change_nothing(cluster: FleetCluster) -> None:
    before = cluster.adapt(minimum=0, maximum=1)
    for asked, why in NO_BOUNDS:
        with pytest.raises(ValueError, match=why):
            cluster.adapt(**asked)
        assert cluster._adaptive is before
        assert (before.minimum, before.maximum) == (0, 1)


BOUNDS: list[tuple[dict[str, Any], tuple[int, float]]] = [
    ({}, (0, math.inf)),
    ({"minimum": None, "maximum": None}, (0, math.inf)),
    ({"minimum": np.int64(1), "maximum": np.int64(3)}, (1, 3)),
    ({"minimum_cores": 3, "maximum_cores": 5}, (2, 2)),
    ({"minimum_memory": "1.5GiB", "maximum_memory": "4.5GiB"}, (2, 4)),
    ({"minimum": 0, "maximum": 0}, (0, 0)),
]


def test_bounds_that_can_be(cluster: FleetCluster) -> None:
    for asked, bounds in BOUNDS:
        adaptive = cluster.adapt(**asked)
        assert (adaptive.minimum, adaptive.maximum) == bounds


def test_numpys_numbers_are_numbers(server: Remote) -> None:
    with FleetCluster(n_workers=np.int64(1), threads_per_worker=np.int32(1), quiet=True, **server.options) as cluster:
        assert cluster.n_workers == 1


def test_before_it_is_started_and_after_its_end(server: Remote) -> None:
    async def main() -> None:
        cluster = FleetCluster(n_workers=0, name="early", asynchronous=True, quiet=True, **server.options)
        for use in (lambda: cluster.scale(1), lambda: cluster.scale(cores=1), lambda: cluster.adapt(maximum=1)):
            with pytest.raises(RuntimeError, match="not started: await it"):
                use()
        await cluster
        await cluster.scale(1)
        await cluster.close()
        for use in (lambda: cluster.scale(1), lambda: cluster.adapt(maximum=1)):
            with pytest.raises(RuntimeError, match="cluster early is closed: take another one"):
                use()

    asyncio.run(main())


def test_what_the_server_refuses_while_adapting_is_told_once(
    cluster: FleetCluster, server: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    asked = len(server.state()["requests"])
    server.set(refuse_scaling=(429, "quota_exceeded", "at most 4 workers. Close a cluster first."))
    cluster.adapt(minimum=9, interval="20ms")
    until(lambda: len(server.state()["requests"]) > asked + 3, "it to be tried again")
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.exc_info for record in told] == [None]
    assert "at most 4 workers. Close a cluster first." in told[0].getMessage()
    server.set(refuse_scaling=None)
    until(lambda: cluster.n_workers == 9, f"it to grow within {DEADLINE_S} s")
