"""The lease of an agent: how long the server believes that it lives, and the only table that says what can become of it.

::

      GRANT              RENEW
    ─────────▶ held ───────────┐
                │ ▲────────────┘
                │ LAPSE ─────▶ lapsed      not heard of for LEASE_S: its attempts are run again elsewhere
                └ RELEASE ───▶ released    it said good-bye, or its successor took over

A lease that has ended is not renewed: the agent gets a new one, with the next epoch, when it is heard of again. What its
attempts bring after that is refused by their own fence.

Leases are counted on the ledger's *lease clock*, which goes on only while a server has the ledger open, by the monotonic
clock: it stands still while the server is down, so that no restart costs a lease, and no jump of the wall clock ends or
prolongs one.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from dask_fleet.model.transitions import Transitions

LEASE_S = 15.0
"""Three heartbeats: one lost frame is no loss, and a dead host's work begins anew within seconds."""


RENEW_S = 5.0
"""How often the leases of all agents that were heard of are renewed together: one transaction, however many they are."""

AHEAD_S = 7.5
"""How far the lease clock may go on beyond its last value on disk; then it stands still until the ledger can be written
again. So a ledger that refuses writes ends no lease, and after a crash the clock begins where it cannot have been yet."""


class LeaseState(StrEnum):
    """Where a lease stands."""

    HELD = "held"
    LAPSED = "lapsed"
    RELEASED = "released"


class LeaseEvent(StrEnum):
    """What can happen to a lease."""

    RENEW = "renew"
    LAPSE = "lapse"
    RELEASE = "release"


LEASE_TRANSITIONS = Transitions(
    "lease",
    {
        (LeaseState.HELD, LeaseEvent.RENEW): LeaseState.HELD,
        (LeaseState.HELD, LeaseEvent.LAPSE): LeaseState.LAPSED,
        (LeaseState.HELD, LeaseEvent.RELEASE): LeaseState.RELEASED,
    },
)


class AgentLease(msgspec.Struct, frozen=True, kw_only=True):
    """The newest lease of an agent."""

    agent: str
    name: str
    """For people."""
    pool: str
    epoch: int
    """Ascending with each grant to this agent: the fence of renewals."""
    state: LeaseState
    granted_us: int
    """UTC, for people."""
    expires_us: int
    """On the lease clock."""
    ended_us: int | None = None
    """UTC, for people; ``None`` while it is held."""
