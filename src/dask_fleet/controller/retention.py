"""Forgets results when their cache time is over, old rows, and their logs."""

from __future__ import annotations

import asyncio
import logging

from dask_fleet.controller.bytes_in_use import BytesInUse
from dask_fleet.controller.log_retention import LogSweeper
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.plugins.result_store import ResultStore

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0
RESULTS_A_SWEEP = 1_000_000
"""Most results that one sweep forgets; the ledger does so in pieces, between which calls get their turn."""
ORPHANS_EVERY_S = 86_400.0
"""How often stored bytes that nobody knows of are looked for; the first time soon after the start."""
ORPHAN_AGE_S = 3_600.0
"""Younger ones are spared."""
_BATCH = 100
"""Rows a transaction: a purge must not hold up the calls that wait for the same writer (10,000 rows cost 308 ms)."""


async def sweep(ledger: Ledger, results: ResultStore, *, clock: Clock, row_retention_s: float) -> int:
    """Purge once what is due; return how many stored files and jobs went. Safe to repeat after a crash at any point."""
    # All at once: what comes back are locations, which most results have none of, so their number tells nothing.
    locations = await ledger.purge_results(limit=RESULTS_A_SWEEP)
    for location in locations:
        await results.delete(location)
    if locations:
        await ledger.forget_locations(locations)
    gone = len(locations)
    while (purged := await ledger.purge_clusters(
        ended_before_us=clock.now_us() - int(row_retention_s * 1e6), limit=_BATCH
    )) == _BATCH:  # fmt: skip
        gone += purged
    gone += purged
    while True:
        purged = await ledger.purge_jobs(finished_before_us=clock.now_us() - int(row_retention_s * 1e6), limit=_BATCH)
        gone += purged
        if purged < _BATCH:
            return gone


async def sweep_orphans(ledger: Ledger, results: ResultStore, *, in_use: BytesInUse) -> int:
    """Delete stored bytes that no result names; return how many.

    They are left behind where server and agent both died between storing the bytes and recording the result. What is young
    is spared: its outcome may be on its way.

    Parameters
    ----------
    in_use
        Knows whose result is being recorded just now.
    """
    gone = 0
    after: str | None = ""
    while after is not None:
        found, after = await results.older(than_s=ORPHAN_AGE_S, after=after)
        unknown = await ledger.unknown_locations(found) if found else []
        for location in unknown:
            if in_use.sweep(location):
                await results.delete(location)
                gone += 1
    return gone


async def sweep_forever(
    ledger: Ledger, results: ResultStore, logs: LogSweeper, *, clock: Clock, row_retention_s: float, in_use: BytesInUse
) -> None:
    """Sweep every `SWEEP_EVERY_S`, for orphans every `ORPHANS_EVERY_S`; a fault is logged and the next sweep tries again."""
    # Not at once: agents come first, with the outcomes of what the server before had stored.
    orphans_at = clock.monotonic() + SWEEP_EVERY_S
    while True:
        try:
            if clock.monotonic() >= orphans_at:
                orphans_at = clock.monotonic() + ORPHANS_EVERY_S
                orphans = await sweep_orphans(ledger, results, in_use=in_use)
                if orphans:
                    log.info("results without a job", extra={"action": "orphans_swept", "gone": orphans})
            gone = await sweep(ledger, results, clock=clock, row_retention_s=row_retention_s)
            gone += await logs.sweep()
            if gone:
                log.info("retention", extra={"action": "retention_swept", "gone": gone})
        except (LedgerUnavailable, OSError):
            log.warning("retention postponed", exc_info=True, extra={"action": "retention_postponed"})
        await asyncio.sleep(SWEEP_EVERY_S)
