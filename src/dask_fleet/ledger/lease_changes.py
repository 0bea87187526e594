"""What each write of a lease means: pure functions from a lease to its next state, shared by all ledgers."""

from __future__ import annotations

from msgspec.structs import replace

from dask_fleet.model.errors import InvalidTransition
from dask_fleet.model.leases import LEASE_S, LEASE_TRANSITIONS, AgentLease, LeaseEvent, LeaseState

LEASE_US = int(LEASE_S * 1_000_000)

TOLD_US = 86_400 * 1_000_000
"""How long an ended lease is still told of."""

KEPT_US = 30 * TOLD_US
"""How long its row is kept, so that an agent that slept for weeks still gets the next epoch."""


def granted(lease: AgentLease | None, agent: str, *, name: str, pool: str, now_us: int, utc_us: int) -> AgentLease:
    """Return the lease that the agent has from now on: its own, prolonged, or a new one with the next epoch.

    Parameters
    ----------
    lease
        Its newest one.
    now_us
        By the lease clock.
    utc_us
        By the wall clock, for people.
    """
    if lease is not None and lease.state is LeaseState.HELD:
        state = LEASE_TRANSITIONS.next(lease.state, LeaseEvent.RENEW)
        return replace(lease, name=name, pool=pool, state=state, expires_us=now_us + LEASE_US)
    epoch = 1 if lease is None else lease.epoch + 1
    return AgentLease(agent=agent, name=name, pool=pool, epoch=epoch, state=LeaseState.HELD, granted_us=utc_us,
                      expires_us=now_us + LEASE_US)


def renewed(lease: AgentLease | None, epoch: int, *, now_us: int) -> AgentLease | None:
    """Return the lease prolonged, or ``None`` if it has ended or is another one."""
    if lease is None or lease.epoch != epoch or lease.state is not LeaseState.HELD:
        return None
    return replace(lease, state=LEASE_TRANSITIONS.next(lease.state, LeaseEvent.RENEW), expires_us=now_us + LEASE_US)


def ended(lease: AgentLease | None, epoch: int, event: LeaseEvent, *, now_us: int, utc_us: int) -> AgentLease | None:
    """Return the lease ended, or ``None`` if it is not held, is another one, or is to lapse before its time.

    Raises
    ------
    InvalidTransition
        If `event` ends no lease.
    """
    if event is LeaseEvent.RENEW:
        raise InvalidTransition("a lease does not end by being renewed")
    if lease is None or lease.epoch != epoch or lease.state is not LeaseState.HELD:
        return None
    if event is LeaseEvent.LAPSE and lease.expires_us > now_us:
        return None
    return replace(lease, state=LEASE_TRANSITIONS.next(lease.state, event), ended_us=utc_us)
