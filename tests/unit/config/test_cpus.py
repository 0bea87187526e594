"""CPUs: the affinity and the container's quota, whichever is less."""

from __future__ import annotations

import os
from pathlib import Path

from dask_fleet.config.cpus import available_cpus, quota


def test_the_quota_of_a_container_counts(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text("100000 100000\n")
    assert available_cpus(limit) == 1
    limit.write_text("max 100000\n")
    assert available_cpus(limit) == len(os.sched_getaffinity(0))
    assert available_cpus(tmp_path / "none") == len(os.sched_getaffinity(0))


def test_a_share_of_a_cpu_is_still_one(tmp_path: Path) -> None:
    assert quota("50000 100000") == 0.5
    limit = tmp_path / "cpu.max"
    limit.write_text("10000 100000")
    assert available_cpus(limit) == 1
