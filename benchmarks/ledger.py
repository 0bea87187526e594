"""How fast the SQLite ledger is on this disk: calls fed in bulk, by some waiting callers, and one at a time.

    python benchmarks/ledger.py [--rows 1000000] [--calls 20000] [--folder DIR]

A call is what a POST costs the ledger: accept with claim, then finish with a small result; two durable commits. With
``--rows`` the same is measured again after so many finished jobs are there, together with the slowest page of listings.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.ids import job_id
from dask_fleet.model.jobs import AttemptEnd, JobFilter, NewRun, Policy, StoredResult
from dask_fleet.model.states import AttemptState, RunEvent, RunState

POLICY = Policy(cache_s=3600.0)
_made = 0


def request() -> NewRun:
    global _made
    _made += 1
    params = b'{"month":%d,"origin":null}' % _made
    name = job_id(tenant="default", service="flights", endpoint="delay", version="1+0123456789abcdef", params=params)
    return NewRun(job_id=name, tenant="default", service="flights", endpoint="delay", version="1+0123456789abcdef",
                  params=params, user=f"user-{_made % 50}", policy=POLICY,
                  tags=("rare",) if _made % 10_000 == 0 else ())


async def call(ledger: SQLiteLedger, *, succeed: bool = True) -> None:
    accepted = await ledger.accept(request(), claim_for="agent-1")
    job = accepted.job
    body = b'{"UA":12.106}'
    result = StoredResult(media_type="application/json", digest=hashlib.sha256(body).hexdigest(), size=len(body), body=body)
    end = AttemptEnd(
        seq=job.seq, run=job.run, attempt=job.attempt, worker="w1", finished_us=time.time_ns() // 1000,
        attempt_state=AttemptState.SUCCEEDED if succeed else AttemptState.FAILED,
        run_event=RunEvent.SUCCEED if succeed else RunEvent.FAIL, result=result if succeed else None,
    )
    assert await ledger.finish(end) is not None


async def fed(ledger: SQLiteLedger, calls: int, callers: int) -> float:
    """Return calls per second with so many callers that each wait for their call."""
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(ledger, succeed=left % 100 != 0)

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(), name=f"caller-{number}")
    return calls / (time.perf_counter() - begin)


async def single(ledger: SQLiteLedger, count: int) -> tuple[float, float]:
    """Return median and 99th percentile, in ms, of one durable operation with nothing beside it."""
    times = []
    for _ in range(count):
        new = request()
        begin = time.perf_counter()
        await ledger.accept(new, claim_for=None)
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def fsync_ms(folder: Path, count: int = 200) -> float:
    """Return the median of writing 4 KiB and fsync, in ms."""
    times = []
    fd = os.open(folder / "fsync-probe", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for number in range(count):
            begin = time.perf_counter()
            os.pwrite(fd, bytes(4096), 4096 * number)
            os.fdatasync(fd)
            times.append((time.perf_counter() - begin) * 1000)
    finally:
        os.close(fd)
        (folder / "fsync-probe").unlink()
    return statistics.median(times)


async def listings(ledger: SQLiteLedger) -> dict[str, float]:
    """Return the slowest of three, in ms, of a page of each filter."""
    middle = (await ledger.list_jobs(JobFilter(tenant="default"), before_seq=_made // 2, limit=1)).jobs
    at_us = middle[0].created_us if middle else 0
    wheres = {
        "none": JobFilter(tenant="default"),
        "state=failed": JobFilter(tenant="default", state=RunState.FAILED),
        "state=expired": JobFilter(tenant="default", state=RunState.EXPIRED),
        "endpoint": JobFilter(tenant="default", service="flights", endpoint="delay"),
        "service": JobFilter(tenant="default", service="flights"),
        "user": JobFilter(tenant="default", user="user-7"),
        "tag": JobFilter(tenant="default", tag="rare"),
        "before": JobFilter(tenant="default", created_before_us=at_us),
        "user+state+before": JobFilter(tenant="default", user="user-7", state=RunState.FAILED, created_before_us=at_us),
        "service+state+unknown user": JobFilter(tenant="default", service="flights", state=RunState.SUCCEEDED, user="no"),
        "endpoint+failed+user": JobFilter(tenant="default", service="flights", endpoint="delay", state=RunState.FAILED,
                                          user="user-1"),
    }
    found = {}
    for name, where in wheres.items():
        slowest = 0.0
        for _ in range(3):
            begin = time.perf_counter()
            await ledger.list_jobs(where, limit=50)
            slowest = max(slowest, (time.perf_counter() - begin) * 1000)
        found[name] = slowest
    return found


async def measure(ledger: SQLiteLedger, folder: Path, calls: int) -> None:
    print(f"  fsync of 4 KiB               {fsync_ms(folder):8.3f} ms")
    median, worst = await single(ledger, 500)
    print(f"  one accept, nothing beside   {median:8.3f} ms   (99 %: {worst:.3f})")
    for callers in (1, 32, 512):
        rate = await fed(ledger, calls if callers > 1 else calls // 10, callers)
        print(f"  calls with {callers:3} callers       {rate:8.0f} per s")
    print(f"  resident                     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:8} MB")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        ledger = SQLiteLedger(folder / "ledger.db")
        await ledger.open()
        try:
            print("empty")
            await measure(ledger, folder, options.calls)
            if options.rows:
                await fed(ledger, max(options.rows - _made, 1), 512)
                print(f"{_made:,} jobs, {(folder / 'ledger.db').stat().st_size >> 20} MB")
                await measure(ledger, folder, options.calls)
                for what, slowest in (await listings(ledger)).items():
                    print(f"  list {what:32} {slowest:8.2f} ms")
        finally:
            await ledger.close()


if __name__ == "__main__":
    asyncio.run(main())
