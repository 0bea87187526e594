"""Leases of agents, and the clock they are counted on."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

import pytest

from dask_fleet.model.errors import InvalidTransition
from dask_fleet.model.leases import AHEAD_S, LEASE_S, RENEW_S, LeaseEvent, LeaseState
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import HOUR_US, SECOND_US, LedgerMaker, ManualClock, scenario

LEASE_US = int(LEASE_S * SECOND_US)


async def wait(ledger: Ledger, clock: ManualClock, seconds: float) -> None:
    """Let time pass with the clock kept, as a server does."""
    while seconds > 0:
        await ledger.renew_leases([])
        step = min(seconds, RENEW_S)
        clock.advance(step)
        seconds -= step


class LeaseScenarios(LedgerMaker):
    """Granted, renewed, lapsed, released; over restarts and jumps of the wall clock."""

    @scenario
    async def test_a_lease_is_granted_and_gone_on_with(self, ledger: Ledger, clock: ManualClock) -> None:
        first = await ledger.grant_lease("a-1", name="a", pool="p")
        assert (first.epoch, first.state, first.name, first.pool) == (1, LeaseState.HELD, "a", "p")
        assert first.expires_us == ledger.lease_now_us() + LEASE_US
        assert first.granted_us == clock.now_us()
        clock.advance(3)
        again = await ledger.grant_lease("a-1", name="a", pool="p")
        assert (again.epoch, again.expires_us) == (1, first.expires_us + 3 * SECOND_US)
        assert await ledger.leases() == [again]

    @scenario
    async def test_a_renewed_lease_does_not_lapse_and_another_one_does(self, ledger: Ledger, clock: ManualClock) -> None:
        for agent in ("a-1", "b-1"):
            await ledger.grant_lease(agent, name=agent[0], pool="p")
        await wait(ledger, clock, 10)
        assert await ledger.renew_leases([("a-1", 1)]) == []
        await wait(ledger, clock, 5)
        assert not await ledger.end_lease("a-1", 1, LeaseEvent.LAPSE)
        assert await ledger.end_lease("b-1", 1, LeaseEvent.LAPSE)
        states = {lease.agent: lease.state for lease in await ledger.leases()}
        assert states == {"a-1": LeaseState.HELD, "b-1": LeaseState.LAPSED}

    @scenario
    async def test_a_lease_that_ended_is_not_renewed_and_ends_once(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.grant_lease("a-1", name="a", pool="p")
        assert await ledger.end_lease("a-1", 1, LeaseEvent.RELEASE)
        assert not await ledger.end_lease("a-1", 1, LeaseEvent.RELEASE)
        await wait(ledger, clock, 20)
        assert not await ledger.end_lease("a-1", 1, LeaseEvent.LAPSE)
        assert await ledger.renew_leases([("a-1", 1), ("nobody", 1)]) == ["a-1", "nobody"]
        (lease,) = await ledger.leases()
        assert lease.state is LeaseState.RELEASED
        assert lease.ended_us is not None

    @scenario
    async def test_the_next_lease_has_the_next_epoch_and_the_old_one_ends_nothing(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        await ledger.grant_lease("a-1", name="a", pool="p")
        await ledger.end_lease("a-1", 1, LeaseEvent.RELEASE)
        second = await ledger.grant_lease("a-1", name="a", pool="p")
        assert (second.epoch, second.ended_us) == (2, None)
        assert await ledger.renew_leases([("a-1", 1)]) == ["a-1"]
        assert not await ledger.end_lease("a-1", 1, LeaseEvent.RELEASE)
        assert await ledger.leases() == [second]

    @scenario
    async def test_being_renewed_is_no_end(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.grant_lease("a-1", name="a", pool="p")
        with pytest.raises(InvalidTransition):
            await ledger.end_lease("a-1", 1, LeaseEvent.RENEW)

    @scenario
    async def test_the_clock_stands_still_while_nothing_can_be_written(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.grant_lease("a-1", name="a", pool="p")
        begin_us = ledger.lease_now_us()
        clock.advance(3600)
        assert ledger.lease_now_us() == begin_us + int(AHEAD_S * SECOND_US)
        assert not await ledger.end_lease("a-1", 1, LeaseEvent.LAPSE)
        await wait(ledger, clock, 5)
        assert ledger.lease_now_us() == begin_us + int((AHEAD_S + 5) * SECOND_US)

    @scenario
    async def test_the_clock_goes_on_over_a_restart_and_never_back(self, ledger: Ledger, clock: ManualClock) -> None:
        lease = await ledger.grant_lease("a-1", name="a", pool="p")
        clock.advance(4)
        before_us = ledger.lease_now_us()
        again = await self.reopened(ledger, clock)
        try:
            clock.advance(100_000)  # the server is slow to start
            assert before_us <= again.lease_now_us() <= before_us + int(AHEAD_S * SECOND_US)
            assert not await again.end_lease("a-1", 1, LeaseEvent.LAPSE)
            assert await again.leases() == [lease]
            assert await again.renew_leases([("a-1", 1)]) == []
            (renewed,) = await again.leases()
            assert renewed.expires_us == again.lease_now_us() + LEASE_US
        finally:
            await again.close()
            await ledger.open()

    @scenario
    async def test_no_jump_of_the_wall_clock_ends_or_prolongs_a_lease(self, ledger: Ledger, clock: ManualClock) -> None:
        lease = await ledger.grant_lease("a-1", name="a", pool="p")
        for seconds in (3600, -7200, 86_400 * 365):
            before_us = ledger.lease_now_us()
            clock.jump(seconds)
            assert ledger.lease_now_us() == before_us
            assert not await ledger.end_lease("a-1", 1, LeaseEvent.LAPSE)
        await wait(ledger, clock, LEASE_S)
        assert ledger.lease_now_us() == lease.expires_us
        assert await ledger.end_lease("a-1", 1, LeaseEvent.LAPSE)

    @scenario
    async def test_ended_leases_are_told_of_for_a_day(self, ledger: Ledger, clock: ManualClock) -> None:
        await ledger.grant_lease("a-1", name="a", pool="p")
        await ledger.end_lease("a-1", 1, LeaseEvent.RELEASE)
        clock.advance(23 * HOUR_US / SECOND_US)
        assert len(await ledger.leases()) == 1
        clock.advance(2 * HOUR_US / SECOND_US)
        assert await ledger.leases() == []
        assert (await ledger.grant_lease("a-1", name="a", pool="p")).epoch == 2
