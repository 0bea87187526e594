"""A sweep forgets all that is due, however much that is."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import msgspec
import pytest
from tests.unit.controller.rig import Rig, outcome, run

from dask_fleet.controller.bytes_in_use import BytesInUse
from dask_fleet.controller.retention import ORPHAN_AGE_S, sweep, sweep_orphans
from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.results.files import FileResultStore
from dask_fleet.testing.ledger_conformance import end_of, request, result


@run
async def test_one_sweep_forgets_all_expired_results_also_those_without_a_file() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=150)
        jobs = [await rig.submit(f"job-{number}", policy={"cache_s": 10.0}) for number in range(150)]
        await side.deliver(*(outcome(job) for job in jobs))
        rig.clock.us += 11_000_000
        await sweep(rig.ledger, rig.controller.results, clock=rig.clock, row_retention_s=1e6)
        assert {(await rig.job(job)).result_run for job in jobs} == {None}


def test_stored_bytes_that_no_result_names_are_deleted_once_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        ledger = MemoryLedger()
        store = FileResultStore(tmp_path / "results", tmp_path / "spool")
        await ledger.open()
        await store.open()

        async def stored(number: int) -> str:
            body = bytes([number]) * 10
            path = tmp_path / "spool" / f"s{number}"
            await asyncio.to_thread(path.write_bytes, body)
            os.utime(path, (1, 1))  # the content may be old; what counts is when it came
            return await store.adopt(path, digest=hashlib.sha256(body).hexdigest(), size=10)

        kept, busy, *orphans = [await stored(number) for number in range(40)]
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(end_of(job, result=msgspec.structs.replace(result(), body=None, location=kept)))
        in_use = BytesInUse()
        assert in_use.take(busy)
        assert await sweep_orphans(ledger, store, in_use=in_use) == 0  # all are young
        monkeypatch.setattr("dask_fleet.controller.retention.ORPHAN_AGE_S", -1.0)
        assert await sweep_orphans(ledger, store, in_use=in_use) == len(orphans)
        assert (await store.size(kept), await store.size(busy)) == (10, 10)
        assert {await store.size(location) for location in orphans} == {None}
        assert ORPHAN_AGE_S >= 3600
        assert not in_use.take(orphans[0])  # whoever comes with it now learns that its bytes are gone
        in_use.release(busy)
        assert await sweep_orphans(ledger, store, in_use=in_use) == 1

    asyncio.run(act())
