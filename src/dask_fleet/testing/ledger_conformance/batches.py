"""How many requests are accepted at once: `accept_many` is `accept`, one after the other, in one transaction."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

import asyncio
import random

import pytest

from dask_fleet.model.errors import FleetError, IdempotencyMismatch, LedgerUnavailable
from dask_fleet.model.jobs import Accepted, JobFilter, JobRecord, NewRun
from dask_fleet.model.states import EventKind, OpenReason, RunState
from dask_fleet.plugins.ledger import MAX_ACCEPT_MANY, Ledger
from dask_fleet.testing.ledger_conformance.scenarios import (
    LedgerMaker,
    ManualClock,
    end_of,
    kinds,
    listed,
    request,
    scenario,
    some,
)


class BatchScenarios(LedgerMaker):
    """How many requests are accepted at once."""

    @scenario
    async def test_many_are_answered_in_their_order(self, ledger: Ledger, clock: ManualClock) -> None:
        news = [request(f"j{n}", priority=n % 7, tags=("t",) if n % 2 else (), params=b"x" * (n * 20)) for n in range(120)]
        answers = [accepted(answer) for answer in await ledger.accept_many(news)]
        assert [(one.job.job_id, one.opened, one.claimed) for one in answers] == [(new.job_id, True, False) for new in news]
        for new, one in zip(news, answers, strict=True):
            assert (one.job.state, one.job.priority, one.job.tags, one.job.params) == (
                RunState.QUEUED, new.priority, new.tags, new.params)
            assert await ledger.get(new.job_id) == one.job
            assert await kinds(ledger, one.job.seq) == [EventKind.ACCEPTED]
        seqs = [one.job.seq for one in answers]
        assert seqs == sorted(set(seqs))
        assert await listed(ledger, JobFilter(tenant="default", tag="t")) == [f"j{n}" for n in range(119, 0, -2)]

    @scenario
    async def test_none_is_no_transaction_and_too_many_are_refused(self, ledger: Ledger, clock: ManualClock) -> None:
        assert await ledger.accept_many([]) == []
        with pytest.raises(ValueError, match=str(MAX_ACCEPT_MANY)):
            await ledger.accept_many([request(f"j{n}") for n in range(MAX_ACCEPT_MANY + 1)])
        assert await ledger.get("j0") is None
        answers = await ledger.accept_many([request(f"j{n}") for n in range(MAX_ACCEPT_MANY)])
        assert len({accepted(one).job.seq for one in answers}) == MAX_ACCEPT_MANY

    @scenario
    async def test_equal_requests_of_a_list_are_one_job(self, ledger: Ledger, clock: ManualClock) -> None:
        first, other, second = map(accepted, await ledger.accept_many(
            [request(tags=("a",)), request("other"), request(tags=("b",))]))
        assert (first.opened, other.opened, second.opened) == (True, True, False)
        assert first.job.seq == second.job.seq
        assert sorted(second.job.tags) == ["a", "b"]
        assert await ledger.get("job-a") == second.job
        assert await kinds(ledger, first.job.seq) == [EventKind.ACCEPTED]

    @scenario
    async def test_known_jobs_are_joined_served_or_opened_again(self, ledger: Ledger, clock: ManualClock) -> None:
        queued = (await ledger.accept(request("queued"))).job
        running = (await ledger.accept(request("running"), claim_for="agent")).job
        done = some(await ledger.finish(end_of((await ledger.accept(request("done"), claim_for="agent")).job)))
        gone = (await ledger.accept(request("gone"))).job
        await ledger.request_cancel(gone.seq, 1, by="bob")
        answers = list(map(accepted, await ledger.accept_many(
            [request("queued"), request("running"), request("done"), request("gone"), request("done", refresh=True)])))
        assert [one.opened for one in answers] == [False, False, False, True, True]
        assert [one.job for one in answers[:3]] == [queued, running, done]
        assert (answers[3].job.run, answers[3].job.reason) == (2, OpenReason.POST)
        assert (answers[4].job.run, answers[4].job.reason) == (2, OpenReason.REFRESH)

    @scenario
    async def test_a_key_used_for_another_request_is_one_entry(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.accept(request("known", idempotency_key="k", request_digest=b"one"))
        answers = await ledger.accept_many([
            request("before"),
            request("wrong", idempotency_key="k", request_digest=b"two"),
            request("again", idempotency_key="k", request_digest=b"one"),
            request("after", idempotency_key="fresh", request_digest=b"three"),
            request("other", idempotency_key="fresh", request_digest=b"three"),
        ])
        assert isinstance(answers[1], IdempotencyMismatch)
        assert await ledger.get("wrong") is None
        rest = [accepted(answers[number]) for number in (0, 2, 3, 4)]
        assert [(one.job.job_id, one.opened) for one in rest] == [
            ("before", True), ("known", False), ("after", True), ("after", False)]
        assert await ledger.get("other") is None

    @scenario
    async def test_many_is_the_same_as_one_by_one(self, ledger: Ledger, clock: ManualClock) -> None:
        draw = random.Random(11)
        for round_ in range(12):
            pairs = [self._twins(draw, round_) for _ in range(draw.randrange(1, 40))]
            many = await ledger.accept_many([many for many, _ in pairs])
            singles = [await attempt(ledger, single) for _, single in pairs]
            assert [told(one) for one in many] == [told(one) for one in singles]
            for name in ("many", "single"):  # the same happens to both: some run, some end, some fail, some wait
                for number in range(0, 20, 3):
                    job = await ledger.get(f"{name}-{number}")
                    if job is not None and job.state is RunState.QUEUED:
                        claimed = some(await ledger.claim(job.seq, job.run, agent="agent"))
                        if number % 2:
                            await ledger.finish(end_of(claimed))
            clock.advance(draw.choice((0, 10, 4000)))

    def _twins(self, draw: random.Random, round_: int) -> tuple[NewRun, NewRun]:
        number = draw.randrange(20)
        fields = {
            "refresh": draw.random() < 0.2,
            "tags": tuple(draw.sample(("a", "b", "c"), draw.randrange(3))),
            "user": draw.choice(("ada", "bob")),
            "priority": draw.randrange(-3, 3),
        }
        key = f"key-{round_}-{draw.randrange(8)}" if draw.random() < 0.3 else None
        digest = bytes([draw.randrange(2)])
        made = [
            request(f"{name}-{number}", idempotency_key=key and f"{name}-{key}", request_digest=digest, **fields)
            for name in ("many", "single")
        ]
        return made[0], made[1]

    @scenario
    async def test_others_write_meanwhile(self, ledger: Ledger, clock: ManualClock) -> None:
        running = (await ledger.accept(request("running"), claim_for="agent")).job
        many = [ledger.accept_many([request(f"m{part}-{n}") for n in range(300)]) for part in range(3)]
        lists, finished, one = await asyncio.gather(
            asyncio.gather(*many), ledger.finish(end_of(running)), ledger.accept(request("one"))
        )
        assert [len(answers) for answers in lists] == [300] * 3
        assert some(finished).state is RunState.SUCCEEDED
        assert one.opened
        assert (await ledger.counts())["queued"] == 901

    @scenario
    async def test_a_caller_who_leaves_undoes_nothing(self, ledger: Ledger, clock: ManualClock) -> None:
        task = asyncio.create_task(_many(ledger, [request(f"j{n}") for n in range(200)]), name="leaver")
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not (await ledger.accept(request("j199"))).opened
        assert (await ledger.counts())["queued"] == 200

    @scenario
    async def test_closing_waits_for_what_was_begun(self, ledger: Ledger, clock: ManualClock) -> None:
        task = asyncio.create_task(_many(ledger, [request(f"j{n}") for n in range(300)]), name="batch")
        await asyncio.sleep(0)
        again = await self.reopened(ledger, clock)
        try:
            assert len(await task) == 300
            assert (await again.counts())["queued"] == 300
        finally:
            await again.close()
        with pytest.raises(LedgerUnavailable):
            await ledger.accept_many([request()])


def accepted(answer: Accepted | FleetError) -> Accepted:
    """Return an entry that must not be a refusal."""
    assert isinstance(answer, Accepted), answer
    return answer


async def attempt(ledger: Ledger, new: NewRun) -> Accepted | FleetError:
    """Do `accept`, with a refusal as its value."""
    try:
        return await ledger.accept(new)
    except FleetError as exc:
        return exc


def told(answer: Accepted | FleetError) -> object:
    """Return what must be the same for twins: all but their names and numbers."""
    if isinstance(answer, FleetError):
        return type(answer)
    job: JobRecord = answer.job
    return (job.job_id.split("-")[-1], answer.opened, answer.claimed, job.run, job.state, job.tags, job.user, job.priority,
            job.reason, job.opened_by, job.attempt, job.created_us, job.opened_us)


async def _many(ledger: Ledger, news: list[NewRun]) -> list[Accepted | FleetError]:
    return await ledger.accept_many(news)
