"""Finished jobs at hand are those of the ledger, whatever happens while it is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.controller.rig import HandClock, Rig, outcome, run

from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model.failure import Cause
from dask_fleet.model.jobs import StoredResult
from dask_fleet.model.states import AttemptState, RunState


class SlowLedger(MemoryLedger):
    """Gives a result only after its gate has opened."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = asyncio.Event()

    async def get_result(self, seq: int, run: int) -> StoredResult | None:
        result = await super().get_result(seq, run)
        await self.gate.wait()
        return result


@pytest.mark.parametrize("state", [AttemptState.SUCCEEDED, AttemptState.FAILED])
def test_a_result_read_during_a_refresh_does_not_take_the_place_of_its_outcome(state: AttemptState) -> None:
    @run
    async def refreshed() -> None:
        clock = HandClock()
        ledger = SlowLedger(clock=clock)
        async with Rig(ledger=ledger, clock=clock) as rig:
            side = rig.agent()
            await side.deliver(outcome(await rig.submit()))
            job = await rig.controller.find((await rig.submit()).job_id, "default")
            rig.controller.recent.drop(job.job_id)

            reading = asyncio.create_task(rig.controller.result(job))
            await rig.settle()
            again = await rig.submit(refresh=True)
            failed = state is AttemptState.FAILED
            await side.deliver(outcome(again, state, attempt=2, body=b"2", cause=Cause.TIMEOUT if failed else None))
            ledger.gate.set()
            old = await reading
            assert old is not None
            assert old.body == b"1"

            found = await rig.controller.find(job.job_id, "default")
            assert (found.run, found.state) == (2, RunState(state))
            cached = rig.controller.cached(job.job_id)
            assert (cached.result.body if cached else None) == (None if failed else b"2")

    refreshed()


@run
async def test_a_finished_job_shows_the_tags_it_was_given_since() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(outcome(job))
        await rig.submit(tags=("late",))
        assert (await rig.controller.find(job.job_id, "default")).tags == ("late",)
