"""How much memory this host or container has, and which part of it a worker process may use."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dask_fleet.model.durations import parse_bytes

AUTO = "auto"
NONE = "none"
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES = 1 << 60
"""Version 1 of control groups writes "no limit" as a number about so large."""


def parse_memory_limit(value: object) -> str:
    """Return the limit in the form settings hold it: ``auto``, ``none`` or a number of bytes as text.

    Raises
    ------
    ValueError
        If it is none of these; the message says what was wished for, to be put behind "must be".
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(_WISH)  # noqa: TRY004 - a setting of the wrong type is refused like one of a wrong value
    word = str(value).strip().lower()
    if word in {AUTO, NONE}:
        return word
    try:
        size = int(word) if word.isascii() and word.isdigit() else parse_bytes(str(value).strip())
    except ValueError:
        raise ValueError(_WISH) from None
    return str(size) if size else NONE


_WISH = "a size such as '4GiB' or '500MB', 'auto' (what there is, shared among the processes) or 'none'"


def memory_limit_bytes(limit: str, nworkers: int, *, available: int | None = None) -> int:
    """Return what each of `nworkers` processes may use, in bytes; 0 for no limit. `limit` is of `parse_memory_limit`."""
    if limit == NONE:
        return 0
    if limit == AUTO:
        return (available_memory() if available is None else available) // nworkers
    return int(limit)


def scheduler_memory_limit_bytes(limit: str, *, available: int | None = None) -> int:
    """Return what each scheduler process may use, in bytes; 0 for no limit. `limit` is of `parse_memory_limit`.

    ``auto`` is a quarter of what there is, and a GiB on a small host.
    """
    if limit == NONE:
        return 0
    if limit == AUTO:
        there_is = available_memory() if available is None else available
        return max(there_is // 4, min(there_is, 1 << 30))
    return int(limit)


def available_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return the bytes of memory that this process's control groups leave it, or the host has; 0 if nothing tells."""
    found = [size for folder in memory_cgroups(proc, cgroups) if (size := _limit_of(folder)) is not None]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    return min(found, default=0)


def memory_cgroups(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> list[Path]:
    """Return the folders of the control groups that count this process's memory, innermost first.

    Those of version 1 and 2 are told apart by what is in them. A container often sees only its own part of the tree, mounted
    as if it were the root: folders that are not there are left out.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            root = cgroups / "memory"
        elif not controllers:
            root = cgroups
        else:
            continue
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            if any((each / name).exists() for name in ("memory.max", "memory.limit_in_bytes", "memory.events")):
                found.append(each)
            if each == root:
                break
    return found


def oom_kills(folders: list[Path]) -> int:
    """Return how many processes the kernel has killed so far because the innermost of the control groups was full."""
    for folder in folders:
        for name in ("memory.events", "memory.oom_control"):
            try:
                text = (folder / name).read_text(encoding="ascii")
            except OSError:
                continue
            for line in text.splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
            return int(text)
    return None
