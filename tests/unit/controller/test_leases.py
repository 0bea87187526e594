"""Agents that are not heard of: when their attempts are run again, and what becomes of them when they come back."""

from __future__ import annotations

import asyncio

from tests.unit.controller.rig import Rig, outcome, ref, run

from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.jobs import AttemptEnd, JobRecord
from dask_fleet.model.leases import LEASE_S, RENEW_S, AgentLease, LeaseEvent, LeaseState
from dask_fleet.model.states import RunState


async def lease_of(rig: Rig, agent: str) -> AgentLease:
    (lease,) = [each for each in await rig.ledger.leases() if each.agent == agent]
    return lease


@run
async def test_an_agent_that_is_attached_has_a_lease_and_keeps_it() -> None:
    async with Rig() as rig:
        rig.agent()
        await rig.advance(1)
        assert (await lease_of(rig, "local-a")).epoch == 1
        await rig.advance(10 * LEASE_S)
        lease = await lease_of(rig, "local-a")
        assert (lease.epoch, lease.state) == (1, LeaseState.HELD)
        assert lease.expires_us > rig.ledger.lease_now_us()


@run
async def test_all_leases_are_renewed_in_one_transaction() -> None:
    calls: list[list[tuple[str, int]]] = []

    class Counting(MemoryLedger):
        async def renew_leases(self, leases):  # type: ignore[no-untyped-def]
            calls.append(sorted(leases))
            return await super().renew_leases(leases)

    clock = Rig().clock
    async with Rig(ledger=Counting(clock=clock), clock=clock) as rig:
        for name in "abc":
            rig.agent(f"{name}-1")
        await rig.advance(1)
        calls.clear()
        await rig.advance(4 * RENEW_S)
        assert calls == [[("a-1", 1), ("b-1", 1), ("c-1", 1)]] * 4


@run
async def test_a_silent_agent_loses_what_it_holds_and_is_fenced_when_it_goes_on() -> None:
    async with Rig() as rig:
        frozen = rig.agent("frozen-a")
        job = await rig.submit()
        await rig.advance(1)
        other = rig.agent("other-a")
        await rig.advance(LEASE_S - 2, beats=False)
        rig.controller.sessions.leases.heard("other-a")
        assert other.attempts() == []
        for _ in range(6):
            await rig.advance(2, beats=False)
            rig.controller.sessions.leases.heard("other-a")
        assert (await lease_of(rig, "frozen-a")).state is LeaseState.LAPSED
        assert other.attempts() == [(job.seq, 2)]
        assert not frozen.handle.is_reached_by(frozen.put)  # so the server ends its connection
        again = rig.agent("frozen-a", held=[ref(job)])
        assert again.handle is not frozen.handle
        assert [(cancel, 0.0) for cancel in again.cancels()] == [((job.seq, 1), 0.0)]
        await again.deliver(outcome(job))
        assert rig.controller.status()["stale_outcomes"] == 1
        assert again.acks() == [(job.seq, 1)]
        await rig.advance(1)
        assert (await lease_of(rig, "frozen-a")).epoch == 2
        await other.deliver(outcome(job, attempt=2))
        assert (await rig.job(job)).state is RunState.SUCCEEDED


class Gated(MemoryLedger):
    """Its `finish` waits at a gate, as on a slow disk; or everything is refused, as on a full one."""

    gate: asyncio.Event | None = None
    full = False

    async def finish(self, end: AttemptEnd) -> JobRecord | None:
        if self.gate is not None:
            await self.gate.wait()
        self._refuse()
        return await super().finish(end)

    async def grant_lease(self, agent: str, *, name: str, pool: str) -> AgentLease:
        self._refuse()
        return await super().grant_lease(agent, name=name, pool=pool)

    async def renew_leases(self, leases):  # type: ignore[no-untyped-def]
        self._refuse()
        return await super().renew_leases(leases)

    async def end_lease(self, agent: str, epoch: int, event: LeaseEvent) -> bool:
        self._refuse()
        return await super().end_lease(agent, epoch, event)

    def _refuse(self) -> None:
        if self.full:
            raise LedgerUnavailable("full")


@run
async def test_an_agent_that_comes_back_while_its_loss_is_written_is_told_to_end() -> None:
    clock = Rig().clock
    ledger = Gated(clock=clock)
    async with Rig(ledger=ledger, clock=clock) as rig:
        side = rig.agent()
        job = await rig.submit()
        await rig.advance(1)
        side.drop()
        ledger.gate = asyncio.Event()
        await rig.advance(2 * LEASE_S)
        assert (await rig.job(job)).state is RunState.RUNNING  # being written
        again = rig.agent(held=[ref(job)])
        assert again.cancels() == [(job.seq, 1)]
        assert again.attempts() == []
        ledger.gate.set()
        await rig.advance(5)
        assert (await rig.job(job)).attempt == 2
        assert again.attempts() == [(job.seq, 2)]
        await again.deliver(outcome(job))
        assert rig.controller.status()["stale_outcomes"] == 1
        await again.deliver(outcome(job, attempt=2))
        assert (await rig.job(job)).state is RunState.SUCCEEDED


@run
async def test_a_ledger_that_refuses_ends_no_lease() -> None:
    clock = Rig().clock
    ledger = Gated(clock=clock)
    async with Rig(ledger=ledger, clock=clock) as rig:
        side = rig.agent()
        job = await rig.submit()
        await rig.advance(1)
        ledger.full = True
        await rig.advance(3600)
        ledger.full = False
        await rig.advance(10)
        assert (await lease_of(rig, "local-a")).state is LeaseState.HELD
        await side.deliver(outcome(job))
        assert (await rig.job(job)).state is RunState.SUCCEEDED


@run
async def test_a_disconnected_agent_that_lapsed_while_the_ledger_refused_lapses_afterwards() -> None:
    clock = Rig().clock
    ledger = Gated(clock=clock)
    async with Rig(ledger=ledger, clock=clock) as rig:
        side = rig.agent()
        job = await rig.submit()
        await rig.advance(1)
        side.drop()
        ledger.full = True
        await rig.advance(3600)
        assert (await rig.job(job)).state is RunState.RUNNING
        ledger.full = False
        other = rig.agent("other-a")
        await rig.advance(LEASE_S + 3 * RENEW_S)
        assert (await lease_of(rig, "local-a")).state is LeaseState.LAPSED
        assert other.attempts() == [(job.seq, 2)]


@run
async def test_after_a_restart_every_lease_has_its_full_time() -> None:
    first = Rig()
    async with first as rig:
        rig.agent()
        job = await rig.submit()
        await rig.advance(LEASE_S - 1, beats=False)
    first.clock.us += 86_400 * 1_000_000
    await first.ledger.close()
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        await rig.advance(LEASE_S - 1)
        assert (await rig.job(job)).state is RunState.RUNNING
        side = rig.agent(held=[ref(job)])
        await rig.advance(3 * LEASE_S)
        await side.deliver(outcome(job))
        ended = await rig.job(job)
        assert (ended.state, ended.attempt) == (RunState.SUCCEEDED, 1)
        assert (await lease_of(rig, "local-a")).epoch == 1


@run
async def test_an_agent_of_the_server_before_that_does_not_come_back_lapses() -> None:
    first = Rig()
    async with first as rig:
        rig.agent()
        job = await rig.submit()  # the server ends before any lease was granted, as the version before had none
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        other = rig.agent("other-a")
        await rig.advance(2 * LEASE_S)
        assert other.attempts() == [(job.seq, 2)]
        assert (await lease_of(rig, "local-a")).state is LeaseState.LAPSED


@run
async def test_a_server_that_died_between_lapse_and_loss_writes_the_loss_at_its_start() -> None:
    first = Rig()
    async with first as rig:
        rig.agent()
        job = await rig.submit()
        await rig.advance(1)
        await rig.ledger.end_lease("local-a", 1, LeaseEvent.RELEASE)
    async with Rig(ledger=first.ledger, clock=first.clock) as rig:
        await rig.settle()
        waiting = await rig.job(job)
        assert (waiting.state, waiting.faults) == (RunState.QUEUED, 1)
        other = rig.agent("other-a")
        await rig.advance(5)
        assert other.attempts() == [(job.seq, 2)]


@run
async def test_a_successor_releases_the_lease_of_the_one_before() -> None:
    async with Rig() as rig:
        first = rig.agent("local-a")
        await rig.advance(1)
        first.drop()
        rig.agent("local-b")
        await rig.advance(1)
        assert (await lease_of(rig, "local-a")).state is LeaseState.RELEASED
        assert (await lease_of(rig, "local-b")).state is LeaseState.HELD
