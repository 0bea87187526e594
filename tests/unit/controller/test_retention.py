"""A sweep forgets all that is due, however much that is."""

from __future__ import annotations

from tests.unit.controller.rig import Rig, outcome, run

from dask_fleet.controller.retention import sweep


@run
async def test_one_sweep_forgets_all_expired_results_also_those_without_a_file() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=150)
        jobs = [await rig.submit(f"job-{number}", policy={"cache_s": 10.0}) for number in range(150)]
        await side.deliver(*(outcome(job) for job in jobs))
        rig.clock.us += 11_000_000
        await sweep(rig.ledger, rig.controller.results, clock=rig.clock, row_retention_s=1e6)
        assert {(await rig.job(job)).result_run for job in jobs} == {None}
