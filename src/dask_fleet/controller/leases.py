"""Keeps the leases of agents: grants, renews all together, and lets lapse those of agents that are no longer heard of.

One transaction every `RENEW_S` for all agents, nothing per job. Here it is only decided whom to renew; whether a lease may
lapse is the ledger's to say, by its own clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.leases import LEASE_S, RENEW_S, LeaseEvent, LeaseState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often it is looked whether a lease is over: in memory, unless one is."""

_LEASE_US = int(LEASE_S * 1_000_000)


class _Held:
    """A lease that is held, as far as this server knows."""

    __slots__ = ("epoch", "expires_us")

    def __init__(self, epoch: int, expires_us: int) -> None:
        self.epoch = epoch
        self.expires_us = expires_us


class LeaseKeeper:
    """The leases of all agents.

    Parameters
    ----------
    lapsed
        Called with an agent's id once its lease has ended in the ledger: what it holds is to be run again elsewhere.
    """

    def __init__(self, ledger: Ledger, clock: Clock, *, lapsed: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lapsed = lapsed
        self._held: dict[str, _Held] = {}
        self._names: dict[str, tuple[str, str]] = {}
        """Agents that are connected and have no lease yet, with name and pool."""
        self._heard: set[str] = set()
        self._renewed_at = clock.monotonic()
        self._lock = asyncio.Lock()

    # ------------------------------------------------------------------ at start

    async def take_up(self) -> set[str]:
        """Give every held lease its full time from now on: the clock stood still while no server was there.

        Returns the agents whose newest lease has ended, so that nothing more is expected of them.
        """
        ended: set[str] = set()
        now_us = self._ledger.lease_now_us()
        for lease in await self._ledger.leases():
            if lease.state is LeaseState.HELD:
                self._held[lease.agent] = _Held(lease.epoch, now_us + _LEASE_US)
            else:
                ended.add(lease.agent)
        if self._held:
            await self._renew(list(self._held))
        return ended

    def awaited(self) -> set[str]:
        """Return the agents that have a lease, or are to get one: each is heard of, or its lease lapses."""
        return {*self._held, *self._names}

    # ------------------------------------------------------------------ what is heard

    def expect(self, agent: str, *, name: str, pool: str) -> None:
        """An agent is there, or is to come back: it gets a lease at the next `step`, or goes on with the one it has."""
        if agent not in self._held:
            self._names[agent] = (name, pool)

    def heard(self, agent: str) -> None:
        """A sign of life."""
        self._heard.add(agent)

    async def release(self, agent: str) -> None:
        """The agent is known to be gone: its lease is over now."""
        self._names.pop(agent, None)
        self._heard.discard(agent)
        async with self._lock:
            lease = self._held.get(agent)
            if lease is not None:
                try:
                    await self._ledger.end_lease(agent, lease.epoch, LeaseEvent.RELEASE)
                except LedgerUnavailable:
                    return  # then it lapses
                self._held.pop(agent, None)

    # ------------------------------------------------------------------ time

    async def keep_forever(self) -> None:
        """Do what is due, again and again; a fault is logged and the next step tries again."""
        while True:
            try:
                await self.step()
            except LedgerUnavailable:
                # No lease ends of that: the ledger's clock stands still with it.
                log.warning("leases not renewed: the ledger refuses", extra={"action": "leases_postponed"})
            except Exception:
                log.exception("leases not renewed", extra={"action": "leases_failed"})
            await asyncio.sleep(LOOK_EVERY_S)

    async def step(self) -> None:
        """Grant, renew and let lapse what is due now."""
        async with self._lock:  # a lease is changed by one step at a time
            for agent in list(self._names):
                await self._grant(agent)
            # A ledger that refused its last write is asked again, also where nothing is to be renewed: it must be seen to
            # take writes again.
            wanted = self._held or self._ledger.refusing is not None
            if wanted and self._clock.monotonic() - self._renewed_at >= RENEW_S:
                await self._renew([agent for agent in self._heard if agent in self._held])
            now_us = self._ledger.lease_now_us() if self._held else 0
            over = [agent for agent, lease in self._held.items() if lease.expires_us <= now_us]
            for agent in over:
                if agent not in self._heard:
                    await self._lapse(agent)

    async def _grant(self, agent: str) -> None:
        name, pool = self._names[agent]
        lease = await self._ledger.grant_lease(agent, name=name, pool=pool)
        if self._names.pop(agent, None) is not None:
            self._held[agent] = _Held(lease.epoch, lease.expires_us)
            log.info("lease granted", extra={"action": "lease_granted", "agent": agent, "epoch": lease.epoch})
        else:  # it was released while this was being written
            await self._ledger.end_lease(agent, lease.epoch, LeaseEvent.RELEASE)

    async def _renew(self, agents: list[str]) -> None:
        """Renew together; without agents it only keeps the ledger's clock going, so that the others' time passes."""
        asked = [(agent, self._held[agent].epoch) for agent in agents]
        self._heard.difference_update(agents)
        try:
            refused = await self._ledger.renew_leases(asked)
        except BaseException:
            self._heard.update(agents)  # they were heard of, whatever the ledger says
            raise
        self._renewed_at = self._clock.monotonic()
        expires_us = self._ledger.lease_now_us() + _LEASE_US
        for agent in agents:
            self._held[agent].expires_us = expires_us
        for agent in refused:
            self._over(agent)

    async def _lapse(self, agent: str) -> None:
        lease = self._held[agent]
        ended = await self._ledger.end_lease(agent, lease.epoch, LeaseEvent.LAPSE)
        if not ended and any(
            each.agent == agent and each.epoch == lease.epoch and each.state is LeaseState.HELD
            for each in await self._ledger.leases()
        ):
            lease.expires_us += 1_000_000  # not yet, by the ledger's own reckoning
            return
        self._over(agent)

    def _over(self, agent: str) -> None:
        lease = self._held.pop(agent)
        self._heard.discard(agent)
        log.warning("lease lapsed", extra={"action": "lease_lapsed", "agent": agent, "epoch": lease.epoch})
        self._lapsed(agent)
