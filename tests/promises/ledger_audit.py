"""Reads a ledger whose server has ended, through the port, as an auditor would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.jobs import AttemptRecord, JobFilter, JobRecord


@dataclass(frozen=True)
class Audited:
    """What the ledger knows of a job."""

    job: JobRecord
    attempts: list[AttemptRecord]
    result: bytes | None


def audit(data_dir: Path, job_ids: Iterable[str]) -> dict[str, Audited]:
    """Return those of the jobs that the ledger knows."""
    return asyncio.run(_audit(data_dir, list(job_ids)))


def count_jobs(data_dir: Path) -> int:
    """Return how many jobs the ledger holds in all."""
    return asyncio.run(_count(data_dir))


async def _audit(data_dir: Path, job_ids: list[str]) -> dict[str, Audited]:
    ledger = SQLiteLedger(data_dir / "ledger.db")
    await ledger.open()
    try:
        found: dict[str, Audited] = {}
        for job_id in job_ids:
            job = await ledger.get(job_id)
            if job is not None:
                result = None if job.result_run is None else await ledger.get_result(job.seq, job.result_run)
                body = None if result is None else result.body
                found[job_id] = Audited(job, await ledger.attempts(job.seq), body)
        return found
    finally:
        await ledger.close()


async def _count(data_dir: Path) -> int:
    ledger = SQLiteLedger(data_dir / "ledger.db")
    await ledger.open()
    try:
        count, before = 0, None
        while True:
            page = await ledger.list_jobs(JobFilter(tenant="default"), before_seq=before, limit=1000)
            count += len(page.jobs)
            before = page.next_before_seq
            if before is None:
                return count
    finally:
        await ledger.close()
