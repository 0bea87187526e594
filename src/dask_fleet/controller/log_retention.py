"""Removes logs whose jobs the ledger has forgotten, and the oldest ones when all together are too large."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from dask_fleet.controller.logs import JobLogs
from dask_fleet.model.logs import parse_log_name
from dask_fleet.plugins.ledger import Ledger

log = logging.getLogger(__name__)

_SHARDS = 256
_BUDGET_S = 0.5
"""How long one sweep looks into folders. Where there are so many logs that this is too short, the next one goes on."""
_BATCH = 500
_SHRINK_TO = 0.9
"""Of the limit: so that not every sweep has to look at all logs."""

Found = dict[int, int]
"""Bytes on disk by job."""


class LogSweeper:
    """Keeps ``DATA_DIR/logs`` in bounds.

    Parameters
    ----------
    max_bytes
        Most that all logs may take on disk; looked at once a sweep, so it may be passed for a while.
    is_active
        Whether a job is unfinished: its log stays.
    """

    def __init__(self, logs: JobLogs, ledger: Ledger, *, max_bytes: int, is_active: Callable[[int], bool]) -> None:
        self._logs = logs
        self._ledger = ledger
        self._max_bytes = max_bytes
        self._is_active = is_active
        self._bytes = [0] * _SHARDS
        self._next = 0

    async def sweep(self) -> int:
        """Remove what is due; return of how many jobs. Safe to repeat after a crash at any point."""
        gone = 0
        until = time.monotonic() + _BUDGET_S
        for _ in range(_SHARDS):
            shard, self._next = self._next, (self._next + 1) % _SHARDS
            folder = self._folder(shard)
            found = await self._logs.run(partial(scan, folder))
            unknown = await self._unknown(list(found))
            if unknown:
                await self._logs.run(partial(remove, folder, unknown))
                gone += len(unknown)
            self._bytes[shard] = sum(size for seq, size in found.items() if seq not in unknown)
            if time.monotonic() > until:
                break
        return gone + (await self._shrink() if sum(self._bytes) > self._max_bytes else 0)

    async def _unknown(self, seqs: list[int]) -> set[int]:
        unknown: set[int] = set()
        for begin in range(0, len(seqs), _BATCH):
            unknown.update(await self._ledger.unknown_jobs(seqs[begin : begin + _BATCH]))
        return unknown

    async def _shrink(self) -> int:
        """Remove the logs of the oldest jobs."""
        sizes: Found = {}
        for shard in range(_SHARDS):
            found = await self._logs.run(partial(scan, self._folder(shard)))
            sizes.update(found)
            self._bytes[shard] = sum(found.values())
        chosen = oldest(sizes, sum(sizes.values()) - int(self._max_bytes * _SHRINK_TO), self._is_active)
        for shard in range(_SHARDS):
            doomed = {seq for seq in chosen if seq % _SHARDS == shard}
            if doomed:
                await self._logs.run(partial(remove, self._folder(shard), doomed))
                self._bytes[shard] -= sum(sizes[seq] for seq in doomed)
        if chosen:
            log.warning(
                "the oldest logs were removed: all together passed logs-max",
                extra={"action": "logs_removed", "jobs": len(chosen), "up_to_seq": max(chosen)},
            )
        return len(chosen)

    def _folder(self, shard: int) -> Path:
        return self._logs.folder / f"{shard:02x}"


def oldest(sizes: Found, excess: int, is_active: Callable[[int], bool]) -> set[int]:
    """Return the oldest jobs that together have `excess` bytes, unfinished ones left out."""
    chosen: set[int] = set()
    for seq in sorted(sizes):
        if excess <= 0:
            break
        if not is_active(seq):
            chosen.add(seq)
            excess -= sizes[seq]
    return chosen


def scan(folder: Path) -> Found:
    """Return which jobs have logs in a folder, and how many bytes of the disk these take."""
    found: Found = {}
    for entry, seq in _entries(folder):
        try:
            found[seq] = found.get(seq, 0) + entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return found


def remove(folder: Path, seqs: Iterable[int]) -> None:
    """Remove the logs of these jobs."""
    doomed = set(seqs)
    for entry, seq in _entries(folder):
        if seq in doomed:
            Path(entry.path).unlink(missing_ok=True)


def _entries(folder: Path) -> list[tuple[os.DirEntry[str], int]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry, parsed[0]) for entry in entries if (parsed := parse_log_name(entry.name)) is not None]
    except FileNotFoundError:
        return []
