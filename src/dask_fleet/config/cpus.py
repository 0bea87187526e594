"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")


def quota(text: str) -> float | None:
    """Return the CPUs that the content of a cgroup's ``cpu.max`` allows; ``None`` for no limit."""
    limit, _, period = text.strip().partition(" ")
    if limit == "max" or not period:
        return None
    return int(limit) / int(period)


def available_cpus(cgroup: Path = _CGROUP_V2) -> int:
    """Return the CPUs that this process's affinity and its container's quota leave it; at least one.

    ``os.cpu_count`` counts the machine's: on a shared node or in a container that starts far too many processes.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        allowed = quota(cgroup.read_text(encoding="ascii"))
    except (OSError, ValueError):
        allowed = None
    if allowed is not None:
        count = min(count, max(1, round(allowed)))
    return max(1, count)
