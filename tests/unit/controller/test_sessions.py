"""Agents come, reconnect and go: what they hold is adopted, sent again, ended or lost, and never recorded twice."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.controller.rig import MANIFEST, Rig, outcome, ref, run

from dask_fleet.controller.fair_queue import Lane
from dask_fleet.model.errors import ProtocolError
from dask_fleet.model.jobs import NewRun, Policy
from dask_fleet.model.leases import LEASE_S
from dask_fleet.model.states import AttemptState, RunState
from dask_fleet.protocol.frames import (
    PROTOCOL_VERSION,
    AttemptRef,
    Heartbeat,
    Hello,
    Introduction,
    Progress,
    Welcome,
    encode_batch,
)


@run
async def test_an_agent_is_welcomed_with_what_it_is_to_load() -> None:
    async with Rig() as rig:
        side = rig.agent()
        assert side.got(Welcome) == [Welcome(rig.ledger.ledger_id, ["s.py"], {"s": "v1"})]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"protocol": PROTOCOL_VERSION + 1}, "install the same version"), ({"name": "other"}, "does not begin with its home")],
)
def test_a_strange_agent_is_refused(change: dict[str, object], message: str) -> None:
    @run
    async def refused() -> None:
        async with Rig() as rig:
            hello = msgspec.structs.replace(Hello(PROTOCOL_VERSION, "local-a", "local", 1, 1, "", []), **change)
            with pytest.raises(ProtocolError, match=message):
                rig.controller.sessions.attach(hello, lambda _: None)
            assert not list(rig.controller.agents)

    refused()


@run
async def test_an_agent_that_was_ended_is_lost_when_the_next_one_comes_whatever_its_home() -> None:
    async with Rig() as rig:
        side = rig.agent("local-old")
        job = await rig.submit()
        assert side.attempts() == [(job.seq, 1)]
        rig.controller.sessions.ended("local-old")
        rig.agent("host-b")
        await rig.settle()
        assert side.handle.held  # it is connected: whoever says that it has ended is wrong
        side.drop()
        rig.controller.sessions.ended("local-old")
        successor = rig.agent("local-home-new")
        await rig.settle()
        assert (await rig.ledger.attempts(job.seq))[0].state is AttemptState.LOST
        assert [handle.agent_id for handle in rig.controller.agents if handle is not successor.handle] == ["host-b"]


@run
async def test_a_refused_agent_is_told_of_unless_one_with_its_number_is_welcome() -> None:
    async with Rig() as rig:
        told: list[Introduction] = []
        rig.controller.sessions.on_refused = told.append
        hello = Hello(PROTOCOL_VERSION + 1, "local-a", "local", 1, 1, "", [])
        rig.controller.sessions.refused(encode_batch([hello]))
        assert told == [Introduction(PROTOCOL_VERSION + 1, "local-a", "local", 1)]
        rig.agent()  # its pid is 1 too
        rig.controller.sessions.refused(encode_batch([hello]))
        assert len(told) == 1


@run
async def test_one_connection_has_one_hello() -> None:
    async with Rig() as rig:
        side = rig.agent()
        with pytest.raises(ProtocolError, match="second Hello"):
            rig.controller.sessions.receive(side.handle, [Hello(PROTOCOL_VERSION, "local-a", "local", 1, 1, "", [])])


@run
async def test_nothing_is_started_before_the_agent_is_ready() -> None:
    async with Rig() as rig:
        side = rig.agent(ready=False)
        job = await rig.submit()
        assert (job.state, side.attempts()) == (RunState.QUEUED, [])
        side.ready("another version")
        await rig.settle()
        assert side.attempts() == []
        side.ready()
        await rig.settle()
        assert side.attempts() == [(job.seq, 1)]


@run
async def test_a_start_that_was_lost_on_the_way_is_sent_again() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        assert side.attempts() == [(job.seq, 1)]
        side.drop()
        again = rig.agent(held=[])
        assert again.attempts() == [(job.seq, 1)]
        await again.deliver(outcome(job))
        assert (await rig.job(job)).state is RunState.SUCCEEDED


@run
async def test_what_the_agent_still_runs_is_adopted_and_not_sent_again() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        side.drop()
        again = rig.agent(held=[ref(job)])
        assert (again.attempts(), again.cancels()) == ([], [])
        await again.deliver(outcome(job))
        assert (await rig.job(job)).state is RunState.SUCCEEDED
        assert again.acks() == [(job.seq, 1)]


@run
async def test_what_the_agent_should_not_run_is_ended() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await side.deliver(outcome(job))
        side.drop()
        again = rig.agent(held=[ref(job)])
        assert again.cancels() == [(job.seq, 1)]


@run
async def test_what_belongs_to_another_ledger_is_left_to_the_agent() -> None:
    async with Rig() as rig:
        side = rig.agent(held=[msgspec.structs.replace(ref(await rig.submit()), attempt=7)], ledger_id="another")
        assert side.cancels() == []  # the Welcome tells it that all it holds is void


@run
async def test_a_wish_to_cancel_reaches_the_agent_after_it_reconnects() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        side.drop()
        await rig.controller.cancel(job, "bob")
        again = rig.agent(held=[ref(job)])
        assert again.cancels() == [(job.seq, 1)]
        await again.deliver(outcome(job, AttemptState.CANCELLED))
        assert (await rig.job(job)).state is RunState.CANCELLED


@run
async def test_an_old_connection_that_ends_late_changes_nothing() -> None:
    async with Rig() as rig:
        old = rig.agent()
        new = rig.agent()
        old.drop()
        assert new.handle.connected
        job = await rig.submit()
        assert new.attempts() == [(job.seq, 1)]


@run
async def test_an_agent_that_does_not_come_back_loses_what_it_held() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        await rig.advance(5)
        side.drop()
        await rig.advance(LEASE_S - 5)
        assert (await rig.job(job)).state is RunState.RUNNING
        await rig.advance(10)
        assert not list(rig.controller.agents)
        waiting = await rig.job(job)
        assert (waiting.state, waiting.faults) == (RunState.QUEUED, 1)
        other = rig.agent("other-a")
        await rig.advance(5)
        assert other.attempts() == [(job.seq, 2)]


@run
async def test_a_namesake_says_that_its_predecessor_is_dead() -> None:
    async with Rig() as rig:
        first = rig.agent("local-a")
        job = await rig.submit()
        first.drop()
        second = rig.agent("local-b")
        await rig.settle()
        assert [handle.agent_id for handle in rig.controller.agents] == ["local-b"]
        await rig.advance(5)
        assert second.attempts() == [(job.seq, 2)]


@run
async def test_a_namesake_that_came_first_says_the_same_once_the_connection_ends() -> None:
    async with Rig() as rig:
        old = rig.agent("local-a")
        job = await rig.submit()
        rig.agent("local-b")
        assert (await rig.job(job)).state is RunState.RUNNING
        old.drop()
        await rig.advance(1.0)
        now = await rig.job(job)
        assert (now.state, now.attempt, now.agent) == (RunState.RUNNING, 2, "local-b")


@run
async def test_an_agent_of_another_name_says_nothing_of_it() -> None:
    async with Rig() as rig:
        first = rig.agent("local-a")
        job = await rig.submit()
        first.drop()
        second = rig.agent("other-b")
        await rig.advance(5)
        assert second.attempts() == []
        assert (await rig.job(job)).state is RunState.RUNNING


@run
async def test_a_successor_delivers_what_its_predecessor_had_spooled() -> None:
    async with Rig() as rig:
        first = rig.agent("local-a")
        job = await rig.submit()
        first.drop()
        second = rig.agent("local-b", held=[ref(job)])
        await rig.settle()
        assert second.cancels() == []
        await second.deliver(outcome(job, body=b"7"))
        ended = await rig.job(job)
        assert (ended.state, ended.attempt) == (RunState.SUCCEEDED, 1)


@run
async def test_what_a_successor_promised_is_lost_with_it() -> None:
    """Else the job would run for ever: nobody holds it any more."""
    async with Rig() as rig:
        first = rig.agent("local-a")
        job = await rig.submit()
        first.drop()
        second = rig.agent("local-b", held=[ref(job)])
        await rig.settle()
        second.drop()
        third = rig.agent("local-c")
        await rig.advance(5)
        assert third.attempts() == [(job.seq, 2)]


@run
async def test_a_claim_under_way_for_an_agent_that_is_replaced_meanwhile_is_lost() -> None:
    """Else the attempt would be held by a handle that nobody looks at any more."""
    async with Rig() as rig:
        first = rig.agent("local-a")
        handle = rig.controller._dispatcher.reserve(Lane("s", "v1"), ("default", "ada"))
        assert handle is first.handle
        job = (await rig.ledger.accept(_new(), claim_for="local-a")).job
        first.drop()
        second = rig.agent("local-b")
        await rig.settle()
        rig.controller._dispatcher.start(handle, job)  # what `_accept` does when its write returns
        while handle in list(rig.controller.agents):
            await rig.settle()
        await rig.advance(5)
        assert second.attempts() == [(job.seq, 2)]


@run
async def test_a_restarted_server_adopts_what_runs() -> None:
    first = Rig()
    async with first as rig:
        side = rig.agent(slots=2)
        job = await rig.submit("held")
        lost = await rig.submit("frame lost on the way")
        assert side.attempts() == [(job.seq, 1), (lost.seq, 1)]
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        assert rig.controller.status()["running"] == 2
        side = rig.agent(slots=2, held=[ref(job)])
        assert side.attempts() == [(lost.seq, 1)]
        await side.deliver(outcome(job), outcome(lost))
        for each in (job, lost):
            ended = await rig.job(each)
            assert (ended.state, ended.attempt) == (RunState.SUCCEEDED, 1)


@run
async def test_an_attempt_that_its_agent_does_not_know_of_is_sent_again() -> None:
    async with Rig() as rig:
        side = rig.agent(slots=2)
        lost, held = await rig.submit("lost"), await rig.submit("held")
        beat = Heartbeat(1, [AttemptRef(held.seq, 1, 1)])
        await rig.advance(9.9)  # it may be on its way yet
        rig.controller.sessions.receive(side.handle, [beat])
        assert side.attempts() == [(lost.seq, 1), (held.seq, 1)]
        await rig.advance(1.0)
        rig.controller.sessions.receive(side.handle, [Heartbeat(1), beat, beat])
        assert side.attempts() == [(lost.seq, 1), (held.seq, 1), (lost.seq, 1)]


@run
async def test_progress_is_kept_for_what_is_held_only() -> None:
    async with Rig() as rig:
        side = rig.agent()
        job = await rig.submit()
        rig.controller.sessions.receive(
            side.handle, [Progress(job.seq, 1, 1, 3.0, 9.0, "third"), Progress(job.seq, 1, 9, 9.0, 9.0, "a zombie's")]
        )
        seen = rig.controller.progress_of(job.seq)
        assert seen is not None
        assert (seen.done, seen.text) == (3.0, "third")


def _new() -> NewRun:
    return NewRun(
        job_id="a" * 32, tenant="default", service="s", endpoint="f", version=MANIFEST.services[0].version, params=b"{}",
        user="ada", policy=Policy(),
    )
