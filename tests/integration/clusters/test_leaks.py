"""Clusters come and go in one warm process: nothing grows."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil
from tests.conftest import FULL
from tests.integration.clusters import workloads
from tests.integration.clusters.site import OnLoop, WorkerProcess

CYCLES, WARM = (100, 20) if FULL else (30, 10)


def _look(process: WorkerProcess) -> dict[str, int]:
    seen = psutil.Process(process.pid)
    return {
        "descriptors": seen.num_fds(),
        "threads": seen.num_threads(),
        "kibibytes": seen.memory_info().rss >> 10,
        "children": len(seen.children()),
    }


def test_nothing_grows(here: OnLoop, record_property: Callable[[str, object], None]) -> None:
    process = here.do(here.site.process(2))

    def cycle() -> None:
        cluster = here.do(here.site.cluster(process))
        with cluster.client(set_as_default=False) as client:
            client.gather([client.submit(workloads.client_of_the_worker, pure=False) for _ in range(4)])
            workloads.inside_tasks(client)
        left = here.do(cluster.close())
        assert [frame.busy for frame in left] == [0]

    for _ in range(WARM):
        cycle()
    before, ours = _look(process), (psutil.Process().num_fds(), threading.active_count())
    for _ in range(CYCLES - WARM):
        cycle()
    after = _look(process)
    grown = {name: after[name] - before[name] for name in before}
    record_property("figures", f"{CYCLES} clusters; grown after the first {WARM}: {grown}")
    assert grown["descriptors"] <= 2
    assert grown["threads"] <= 1
    assert grown["children"] == 0
    assert grown["kibibytes"] <= (CYCLES - WARM) * 100
    assert not list(here.site.scratch.glob("dask-scratch-space/membership-*"))
    assert psutil.Process().num_fds() <= ours[0] + 4
    assert threading.active_count() <= ours[1] + 2
