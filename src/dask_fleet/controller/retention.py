"""Forgets results when their cache time is over, and old rows."""

from __future__ import annotations

import asyncio
import logging

from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.plugins.result_store import ResultStore

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0
RESULTS_A_SWEEP = 1_000_000
"""Most results that one sweep forgets; the ledger does so in pieces, between which calls get their turn."""
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
    while True:
        purged = await ledger.purge_jobs(finished_before_us=clock.now_us() - int(row_retention_s * 1e6), limit=_BATCH)
        gone += purged
        if purged < _BATCH:
            return gone


async def sweep_forever(ledger: Ledger, results: ResultStore, *, clock: Clock, row_retention_s: float) -> None:
    """Sweep every `SWEEP_EVERY_S` seconds; a fault is logged and the next sweep tries again."""
    while True:
        try:
            gone = await sweep(ledger, results, clock=clock, row_retention_s=row_retention_s)
            if gone:
                log.info("retention", extra={"action": "retention_swept", "gone": gone})
        except (LedgerUnavailable, OSError):
            log.warning("retention postponed", exc_info=True, extra={"action": "retention_postponed"})
        await asyncio.sleep(SWEEP_EVERY_S)
