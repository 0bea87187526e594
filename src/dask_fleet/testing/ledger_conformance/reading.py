"""What is found again: events, listings, unfinished jobs."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask_fleet.model.jobs import JobFilter, JobRecord
from dask_fleet.model.states import RunEvent, RunState
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import (
    SECOND_US,
    LedgerMaker,
    ManualClock,
    end_of,
    listed,
    request,
    scenario,
    some,
)


class ReadingScenarios(LedgerMaker):
    """What is found again: events, listings, unfinished jobs."""

    # ------------------------------------------------------------------ reads

    @scenario
    async def test_what_is_not_there_is_not_found(self, ledger: Ledger, clock: ManualClock) -> None:
        assert await ledger.get("nobody") is None
        assert await ledger.get_result(1, 1) is None
        assert await ledger.attempts(1) == []
        assert await ledger.events(1) == []
        assert await ledger.unfinished() == []
        assert await ledger.counts() == {"queued": 0, "running": 0}
        page = await ledger.list_jobs(JobFilter(tenant="default"))
        assert (page.jobs, page.next_before_seq) == ([], None)

    @scenario
    async def test_events_resume_after_an_id(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request(), claim_for="agent")).job
        await ledger.accept(request("other"), claim_for="agent")
        await ledger.finish(end_of(job))
        events = await ledger.events(job.seq)
        ids = [event.event_id for event in events]
        assert ids == sorted(set(ids))
        assert await ledger.events(job.seq, after=ids[0]) == events[1:]
        assert await ledger.events(job.seq, after=ids[-1]) == []
        assert await ledger.events(job.seq, limit=2) == events[:2]

    @scenario
    async def test_unknown_handles(self, ledger: Ledger, clock: ManualClock) -> None:
        known = [(await ledger.accept(request(f"j{n}"))).job.seq for n in range(3)]
        assert await ledger.unknown_jobs([]) == []
        assert await ledger.unknown_jobs(known) == []
        assert sorted(await ledger.unknown_jobs([*known, max(known) + 1, 10**12])) == [max(known) + 1, 10**12]

    @scenario
    async def test_unfinished_and_counts(self, ledger: Ledger, clock: ManualClock) -> None:
        for n in range(12):
            job = (await ledger.accept(request(f"j{n}", tenant=f"t{n % 3}"), claim_for="agent" if n % 2 else None)).job
            if n % 4 == 1:
                await ledger.finish(end_of(job))
        expected = ["j0", "j2", "j3", "j4", "j6", "j7", "j8", "j10", "j11"]
        assert [job.job_id for job in await ledger.unfinished()] == expected
        found: list[JobRecord] = []
        while page := await ledger.unfinished(after_seq=found[-1].seq if found else 0, limit=2):
            found += page
        assert [job.job_id for job in found] == expected
        assert found[0] == await ledger.get("j0")
        assert await ledger.counts() == {"queued": 6, "running": 3}

    async def _populate(self, ledger: Ledger, clock: ManualClock) -> list[JobRecord]:
        for n in range(60):
            new = request(f"j{n}", tenant="other" if n % 10 == 9 else "default", service="math" if n % 4 == 0 else "flights",
                          endpoint=f"e{n % 3}", user=f"u{n % 5}", tags=("even",) if n % 2 == 0 else ("odd", f"t{n % 7}"))
            job = (await ledger.accept(new, claim_for="agent" if n % 3 else None)).job
            if n % 3 == 1:
                await ledger.finish(end_of(job, RunEvent.FAIL if n % 2 else RunEvent.SUCCEED))
            clock.advance(1)
        return [some(await ledger.get(f"j{n}")) for n in range(60)]

    @scenario
    async def test_listing_by_each_filter_and_all_pairs(self, ledger: Ledger, clock: ManualClock) -> None:
        begin = clock.now_us()
        jobs = await self._populate(ledger, clock)
        conditions: list[tuple[dict[str, Any], Callable[[JobRecord], bool]]] = [
            ({}, lambda _: True),
            ({"state": RunState.FAILED}, lambda job: job.state is RunState.FAILED),
            ({"state": RunState.QUEUED}, lambda job: job.state is RunState.QUEUED),
            ({"service": "flights"}, lambda job: job.service == "flights"),
            ({"service": "flights", "endpoint": "e1"}, lambda job: (job.service, job.endpoint) == ("flights", "e1")),
            ({"user": "u2"}, lambda job: job.user == "u2"),
            ({"tag": "odd"}, lambda job: "odd" in job.tags),
            ({"tag": "t3"}, lambda job: "t3" in job.tags),
            ({"created_after_us": begin + 20 * SECOND_US}, lambda job: job.created_us >= begin + 20 * SECOND_US),
            ({"created_before_us": begin + 40 * SECOND_US}, lambda job: job.created_us < begin + 40 * SECOND_US),
            ({"user": "nobody"}, lambda _: False),
        ]
        for one, fits_one in conditions:
            for two, fits_two in conditions:
                where = JobFilter(tenant="default", **(one | two)) if not (one.keys() & two.keys()) else None
                if where is None:
                    continue
                expected = [job.job_id for job in reversed(jobs)
                            if job.tenant == "default" and fits_one(job) and fits_two(job)]
                assert await listed(ledger, where) == expected, where
                assert await listed(ledger, where, limit=7) == expected, where
        page = await ledger.list_jobs(JobFilter(tenant="other"), limit=3)
        assert page.jobs == [jobs[59], jobs[49], jobs[39]]

    @scenario
    async def test_listing_by_time_when_the_clock_went_back(self, ledger: Ledger, clock: ManualClock) -> None:
        times = {}
        for n, step in enumerate([1, 1, 1, -100, 1, 1, 500, 1, -300, 1, 1]):
            clock.jump(step)
            times[f"j{n}"] = (await ledger.accept(request(f"j{n}"))).job.created_us
        for begin in sorted(times.values()):
            for end in [*sorted(times.values()), None]:
                where = JobFilter(tenant="default", created_after_us=begin, created_before_us=end)
                expected = [name for name in reversed(times) if begin <= times[name] and (end is None or times[name] < end)]
                assert await listed(ledger, where, limit=3) == expected

    @scenario
    async def test_a_cursor_is_steady_while_jobs_come(self, ledger: Ledger, clock: ManualClock) -> None:
        for n in range(10):
            await ledger.accept(request(f"j{n}"))
        first = await ledger.list_jobs(JobFilter(tenant="default"), limit=4)
        await ledger.accept(request("late"))
        rest = await ledger.list_jobs(JobFilter(tenant="default"), before_seq=first.next_before_seq, limit=50)
        assert [job.job_id for job in [*first.jobs, *rest.jobs]] == [f"j{n}" for n in reversed(range(10))]
        assert rest.next_before_seq is None
