"""What agents report becomes a ledger change under the fence, once, and only then is acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.controller.rig import Rig, outcome, ref, run

from dask_fleet.model.errors import InternalError, LedgerUnavailable
from dask_fleet.model.failure import Cause
from dask_fleet.model.jobs import AttemptEnd, JobRecord
from dask_fleet.model.states import AttemptState, EventKind, RunState
from dask_fleet.protocol.frames import Ack, Outcome


@run
async def test_a_success_is_kept_acknowledged_and_at_hand() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(outcome(job, body=b"42"))
        ended = await rig.job(job)
        assert ended.state is RunState.SUCCEEDED
        result = await rig.ledger.get_result(job.seq, 1)
        assert result is not None
        assert result.body == b"42"
        assert side.acks() == [(job.seq, 1)]
        assert side.handle.free == 1
        entry = rig.controller.cached(job.job_id)
        assert entry is not None
        assert entry.result.body == b"42"


@run
async def test_the_acknowledgement_comes_after_the_write() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        seen: list[bool] = []
        finish = rig.ledger.finish

        async def watched(end: AttemptEnd) -> JobRecord | None:
            seen.append(bool(side.got(Ack)))
            return await finish(end)

        rig.ledger.finish = watched  # type: ignore[method-assign]
        await side.deliver(outcome(job))
        assert (seen, side.acks()) == ([False], [(job.seq, 1)])


@run
async def test_an_outcome_sent_twice_is_recorded_once_and_acknowledged() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(outcome(job, body=b"1"), outcome(job, body=b"1"))
        await side.deliver(outcome(job, body=b"1"))
        kinds = [event.kind for event in await rig.ledger.events(job.seq)]
        assert kinds.count(EventKind.SUCCEEDED) == 1
        assert len(await rig.ledger.attempts(job.seq)) == 1
        assert set(side.acks()) == {(job.seq, 1)}


@pytest.mark.parametrize("moment", ["while it waits", "while attempt 2 runs", "after attempt 2"])
def test_a_late_outcome_is_refused_counted_and_acknowledged(moment: str, caplog: pytest.LogCaptureFixture) -> None:
    @run
    async def refused() -> None:
        async with Rig() as rig:
            first = rig.agent("local-a")
            job = await rig.submit()
            first.drop()
            second = rig.agent("local-b", ready=False)
            await rig.settle()
            zombie = rig.agent("local-a", ready=False)
            late = outcome(job, body=b'"zombie"')
            if moment == "while it waits":
                await zombie.deliver(late)
            await rig.advance(5)
            second.ready()
            await rig.settle()
            assert second.attempts() == [(job.seq, 2)]
            if moment == "while attempt 2 runs":
                await zombie.deliver(late)
            await second.deliver(outcome(job, attempt=2, body=b'"fenced"'))
            if moment == "after attempt 2":
                await zombie.deliver(late)
            result = await rig.ledger.get_result(job.seq, 1)
            assert result is not None
            assert result.body == b'"fenced"'
            assert rig.controller.status()["stale_outcomes"] == 1
            assert zombie.acks() == [(job.seq, 1)]

    with caplog.at_level(logging.WARNING, "dask_fleet"):
        refused()
    assert [record.__dict__["attempt"] for record in caplog.records if record.__dict__.get("action") == "stale_epoch"] == [1]


def _gated_finish(rig: Rig) -> asyncio.Event:
    """Make the ledger's `finish` wait for the event that is returned."""
    gate, finish = asyncio.Event(), rig.ledger.finish

    async def gated(end: AttemptEnd) -> JobRecord | None:
        await gate.wait()
        return await finish(end)

    rig.ledger.finish = gated  # type: ignore[method-assign]
    return gate


@run
async def test_an_outcome_sent_again_while_it_is_written_takes_no_slot_for_ever() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        gate = _gated_finish(rig)
        await side.deliver(outcome(job))
        side.drop()
        again = rig.agent(held=[ref(job)])
        await again.deliver(outcome(job))
        assert again.acks() == []
        gate.set()
        await rig.settle()
        assert (set(again.acks()), again.handle.free) == ({(job.seq, 1)}, 1)
        assert (await rig.job(job)).state is RunState.SUCCEEDED
        assert rig.controller.status()["stale_outcomes"] == 0


@run
async def test_an_agent_that_comes_back_as_it_is_given_up_is_refused_and_told() -> None:
    async with Rig() as rig:
        first = rig.agent("local-a")
        job = await rig.submit()
        gate = _gated_finish(rig)
        first.drop()
        rig.agent("local-b", ready=False)
        await rig.settle()  # the loss is being written
        back = rig.agent("local-a", held=[ref(job)], ready=False)
        await back.deliver(outcome(job))
        gate.set()
        await rig.settle()
        assert (back.acks(), back.handle.held) == ([(job.seq, 1)], {})
        assert (await rig.job(job)).state is RunState.QUEUED
        assert rig.controller.status()["stale_outcomes"] == 1


@run
async def test_an_outcome_that_could_not_be_recorded_is_recorded_when_it_comes_again() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        finish = rig.ledger.finish

        async def broken(end: AttemptEnd) -> JobRecord | None:
            raise RuntimeError("a fault of ours")

        rig.ledger.finish = broken  # type: ignore[method-assign]
        await side.deliver(outcome(job))
        assert side.acks() == []
        rig.ledger.finish = finish  # type: ignore[method-assign]
        await side.deliver(outcome(job), outcome(job), outcome(job))
        assert (await rig.job(job)).state is RunState.SUCCEEDED
        assert side.acks()


@run
async def test_an_outcome_whose_acknowledgement_was_lost_is_no_zombies() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(outcome(job))
        await side.deliver(outcome(job))
        assert side.acks() == [(job.seq, 1), (job.seq, 1)]
        assert rig.controller.status()["stale_outcomes"] == 0
        await side.deliver(outcome(job, AttemptState.FAILED))
        assert rig.controller.status()["stale_outcomes"] == 1


@run
async def test_an_outcome_of_an_earlier_run_is_refused() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(outcome(job, AttemptState.FAILED, cause=Cause.EXCEPTION))
        again = await rig.submit()
        assert (again.run, side.attempts()) == (2, [(job.seq, 1), (job.seq, 2)])
        await side.deliver(outcome(job, body=b'"late"'))
        assert (await rig.job(job)).state is RunState.RUNNING
        assert rig.controller.status()["stale_outcomes"] == 1


@run
async def test_the_fence_of_the_ledger_decides_where_memory_is_wrong() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        current = rig.controller._dispatcher.by_seq[job.seq]
        rig.controller._dispatcher.track(msgspec.structs.replace(current, attempt=7))
        await side.deliver(outcome(job, attempt=7))
        assert (await rig.job(job)).state is RunState.RUNNING
        assert rig.controller.status()["stale_outcomes"] == 1


@run
async def test_an_outcome_waits_for_a_ledger_that_cannot_be_written() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        finish, refusals = rig.ledger.finish, [LedgerUnavailable("the disk is full")]

        async def full(end: AttemptEnd) -> JobRecord | None:
            if refusals:
                raise refusals.pop()
            return await finish(end)

        rig.ledger.finish = full  # type: ignore[method-assign]
        await side.deliver(outcome(job))
        assert side.acks() == []
        ended = await rig.controller.wait(job, 5.0)
        assert ended.state is RunState.SUCCEEDED
        await rig.settle()
        assert side.acks() == [(job.seq, 1)]


def _spooled(job: JobRecord, **changes: Any) -> Outcome:
    return msgspec.structs.replace(outcome(job), body=None, **changes)


@pytest.mark.parametrize("spool", ["../ledger.db", "", ".", ".."])
def test_a_spool_file_elsewhere_is_not_taken(spool: str) -> None:
    @run
    async def refused() -> None:
        async with Rig() as rig:
            side = rig.agent()
            job = await rig.submit()
            await side.deliver(_spooled(job, spool=spool))
            after = await rig.job(job)
            assert (after.state, after.faults) == (RunState.QUEUED, 1)
            assert after.failure is not None
            assert after.failure.cause is Cause.AGENT_LOST

    refused()


@run
async def test_a_result_without_its_bytes_is_a_lost_attempt() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(_spooled(job))
        assert (await rig.job(job)).state is RunState.QUEUED


def test_a_full_result_store_fails_the_attempt_and_it_is_tried_again(tmp_path: Path) -> None:
    @run
    async def full() -> None:
        async with Rig() as rig:
            side = rig.agent()
            job = await rig.submit()

            async def no_space(*_: object, **__: object) -> str:
                raise OSError(28, "No space left on device")

            rig.controller.results.adopt = no_space  # type: ignore[method-assign]
            digest = hashlib.sha256(b"x").hexdigest()
            await side.deliver(_spooled(job, spool="a", digest=digest, size=1))
            after = await rig.job(job)
            assert (after.state, after.faults) == (RunState.QUEUED, 1)
            assert after.failure is not None
            assert after.failure.cause is Cause.RESULT_STORE_FULL

    full()


@run
async def test_a_slot_is_free_while_the_outcome_is_written() -> None:
    """So that the next run is claimed in the same commit."""
    async with Rig() as rig:
        side = rig.agent()
        one, two = await rig.submit("one"), await rig.submit("two")
        seen: list[RunState] = []
        finish = rig.ledger.finish

        async def watched(end: AttemptEnd) -> JobRecord | None:
            await rig.settle()
            seen.append((await rig.job(two)).state)
            return await finish(end)

        rig.ledger.finish = watched  # type: ignore[method-assign]
        await side.deliver(outcome(one))
        await rig.settle()
        assert seen == [RunState.RUNNING]
        assert side.attempts() == [(one.seq, 1), (two.seq, 1)]


def test_the_spooled_result_of_a_refused_outcome_is_removed(tmp_path: Path) -> None:
    @run
    async def refused() -> None:
        async with Rig() as rig:
            rig.controller._outcomes._spool = tmp_path
            side = rig.agent()
            job = await rig.submit()
            await side.deliver(outcome(job, AttemptState.FAILED, cause=Cause.TIMEOUT))
            late = msgspec.structs.replace(outcome(job), body=None, spool="late")
            await rig.controller._outcomes.record(side.handle, late)
            assert rig.controller.status()["stale_outcomes"] == 1

    (tmp_path / "late").write_bytes(b"1")
    refused()
    assert list(tmp_path.iterdir()) == []


@run
async def test_an_outcome_that_the_ledger_refuses_for_good_ends_its_attempt_only() -> None:
    """Else the run would hang in the books until its agent reconnects."""
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        finish = rig.ledger.finish

        async def strict(end: AttemptEnd) -> JobRecord | None:
            if end.result is not None and end.attempt == 1:
                raise InternalError("a rule of the schema")
            return await finish(end)

        rig.ledger.finish = strict  # type: ignore[method-assign]
        await side.deliver(outcome(job))
        assert side.acks() == [(job.seq, 1)]
        waiting = await rig.job(job)
        assert (waiting.state, waiting.faults) == (RunState.QUEUED, 1)
        await rig.advance(5)
        await side.deliver(outcome(job, attempt=2))
        assert (await rig.job(job)).state is RunState.SUCCEEDED


@run
async def test_a_claim_that_fails_unforeseen_comes_again() -> None:
    async with Rig() as rig:
        job = await rig.submit()
        claim, tries = rig.ledger.claim, []

        async def broken(seq: int, run: int, *, agent: str) -> JobRecord | None:
            tries.append(seq)
            if len(tries) == 1:
                raise InternalError("nobody foresaw it")
            return await claim(seq, run, agent=agent)

        rig.ledger.claim = broken  # type: ignore[method-assign]
        side = rig.agent()
        await rig.settle()
        assert (tries, side.attempts(), side.handle.reserved) == ([job.seq], [], 0)
        await rig.advance(6)
        assert side.attempts() == [(job.seq, 1)]
