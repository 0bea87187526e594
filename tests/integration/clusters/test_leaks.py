"""Clusters come and go in one warm process: nothing grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from tests.conftest import FULL
from tests.integration.clusters import workloads
from tests.integration.clusters.site import PATIENCE_S, OnLoop, WorkerProcess

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
    process, folders = here.do(here.site.process(2)), _folders(here)

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
    assert grown["threads"] <= 4  # of the loop's own executor, which has six at most
    assert grown["children"] == 0
    # What the allocator has not settled yet; workers that stayed in memory made 700 KiB a cluster of it.
    assert grown["kibibytes"] <= 8 << 10
    _look_into_memory(here, process)
    assert _folders(here) <= folders
    assert psutil.Process().num_fds() <= ours[0] + 4
    assert threading.active_count() <= ours[1] + 2


def _folders(here: OnLoop) -> set[Path]:
    """The scratch folders of memberships: those of this test's own, and of whoever failed before it."""
    return set(here.site.scratch.glob("dask-scratch-space/membership-*"))


def _look_into_memory(here: OnLoop, process: Any) -> None:
    """Wait until the one Dask worker that lives is the only one in memory: timers of up to 30 s refer to others."""
    probe = here.do(here.site.cluster(process))
    with probe.client(set_as_default=False) as client:
        deadline = time.monotonic() + PATIENCE_S
        while (workers := client.submit(workloads.workers_in_memory, pure=False).result(timeout=60)) > 1:
            assert time.monotonic() < deadline, f"{workers} workers are in memory, one of them lives"
            time.sleep(0.5)
    here.do(probe.close())
