"""What deaths of worker processes leave in a run, and who is a suspect."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

from typing import Any

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import AttemptEnd, JobRecord, Policy
from dask_fleet.model.states import AttemptState, RunEvent, RunState
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import (
    SECOND_US,
    LedgerMaker,
    ManualClock,
    end_of,
    request,
    scenario,
    some,
)


def death_of(job: JobRecord, event: RunEvent = RunEvent.REQUEUE, *, cause: Cause = Cause.WORKER_DIED, **changes: Any
             ) -> AttemptEnd:
    """Return the end of a job's current attempt by the death of its worker process."""
    failure = Failure(cause=cause, message="killed by SIGKILL")
    return end_of(job, event, attempt_state=AttemptState.LOST, failure=failure, **changes)


class GuiltScenarios(LedgerMaker):
    """Suspects and charges."""

    @scenario
    async def test_a_shared_death_makes_a_suspect_and_charges_nobody(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        after = some(await ledger.finish(death_of(job, makes_suspect=True, counts_as_loss=True)))
        assert (after.state, after.suspect, after.deaths, after.losses) == (RunState.QUEUED, True, 0, 1)
        assert await ledger.get(job.job_id) == after
        assert (await ledger.events(job.seq))[-1].data["suspect"] is True
        claimed = some(await ledger.claim(job.seq, 1, agent="agent"))
        assert (claimed.suspect, claimed.losses) == (True, 1)

    @scenario
    async def test_charges_are_counted_apart(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        some(await ledger.finish(death_of(job, makes_suspect=True, counts_as_death=True)))
        job = some(await ledger.claim(job.seq, 1, agent="agent"))
        job = some(await ledger.finish(
            death_of(job, cause=Cause.MEMORY_LIMIT, counts_as_death=True, counts_as_memory_kill=True)))
        assert (job.deaths, job.memory_kills, job.losses, job.faults, job.exceptions) == (2, 1, 0, 0, 0)
        assert await ledger.get(job.job_id) == job

    @scenario
    async def test_it_outlives_the_server(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        before = some(await ledger.finish(death_of(job, makes_suspect=True, counts_as_death=True)))
        again = await self.reopened(ledger, clock)
        try:
            assert await again.unfinished() == [before]
        finally:
            await again.close()
            await ledger.open()

    @scenario
    async def test_a_run_after_a_death_begins_as_a_suspect_and_is_not_claimed_at_once(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.finish(death_of(job, RunEvent.FAIL, counts_as_death=True))
        posted = await ledger.accept(request(), claim_for="agent")
        assert (posted.opened, posted.claimed, posted.job.state) == (True, False, RunState.QUEUED)
        assert (posted.job.suspect, posted.job.deaths) == (True, 0)
        await ledger.request_cancel(job.seq, 2, by="ada")
        retried = await ledger.reopen(job.seq, by="ada", claim_for="agent")  # nothing has cleared it meanwhile
        assert (retried.claimed, retried.job.suspect) == (False, True)
        assert await ledger.get(job.job_id) == retried.job

    @scenario
    async def test_a_success_clears_a_suspect(self, ledger: Ledger, clock: ManualClock) -> None:
        new = request(policy=Policy(cache_s=1.0))
        job = (await ledger.accept(new, claim_for="agent")).job
        await ledger.finish(death_of(job, makes_suspect=True, counts_as_loss=True))
        job = some(await ledger.claim(job.seq, 1, agent="agent"))
        some(await ledger.finish(end_of(job)))
        clock.advance(2 * SECOND_US / 1e6)
        again = await ledger.accept(new, claim_for="agent")
        assert (again.claimed, again.job.suspect, again.job.losses) == (True, False, 0)
        assert await ledger.get(job.job_id) == again.job
