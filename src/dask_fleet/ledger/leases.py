"""The leases of agents in SQLite, each call inside a transaction of the writer."""

from __future__ import annotations

from typing import Any

from dask_fleet.ledger import lease_changes, rows, statements
from dask_fleet.ledger.lease_clock import LeaseClock
from dask_fleet.ledger.writes import Writes
from dask_fleet.model.leases import AgentLease, LeaseEvent
from dask_fleet.plugins.clock import Clock

_SQL = statements.load("leases")


class Leases:
    """Reads, decides (`lease_changes`), writes. The clock's new horizon is told to `clock` once the commit is durable."""

    def __init__(self, connection: Any, writes: Writes, clock: Clock) -> None:
        self._execute = connection.execute
        self._writes = writes
        row = self._execute(_SQL["clock"]).fetchone()
        self.clock = LeaseClock(clock, 0 if row is None else int(row[0]))

    def grant(self, agent: str, name: str, pool: str) -> tuple[AgentLease, int]:
        """See `Ledger.grant_lease`; with it comes the clock's new horizon."""
        horizon_us = self._keep_clock()
        utc_us = self._writes.now_us
        self._execute(_SQL["purge_leases"], (utc_us - lease_changes.KEPT_US,))
        lease = lease_changes.granted(
            self._newest(agent), agent, name=name, pool=pool, now_us=self.clock.now_us(), utc_us=utc_us
        )
        self._execute(_SQL["put_lease"], rows.row_of_lease(lease))
        return lease, horizon_us

    def renew(self, leases: tuple[tuple[str, int], ...]) -> tuple[list[str], int]:
        """See `Ledger.renew_leases`; with it comes the clock's new horizon."""
        horizon_us = self._keep_clock()
        now_us = self.clock.now_us()
        refused = []
        for agent, epoch in leases:
            lease = lease_changes.renewed(self._newest(agent), epoch, now_us=now_us)
            if lease is None:
                refused.append(agent)
            else:
                self._execute(_SQL["put_lease"], rows.row_of_lease(lease))
        return refused, horizon_us

    def end(self, agent: str, epoch: int, event: LeaseEvent) -> bool:
        """See `Ledger.end_lease`."""
        lease = lease_changes.ended(
            self._newest(agent), epoch, event, now_us=self.clock.now_us(), utc_us=self._writes.now_us
        )
        if lease is None:
            return False
        self._execute(_SQL["put_lease"], rows.row_of_lease(lease))
        return True

    def _newest(self, agent: str) -> AgentLease | None:
        row = self._execute(_SQL["lease"], (agent,)).fetchone()
        return None if row is None else rows.lease_from_row(row)

    def _keep_clock(self) -> int:
        horizon_us = self.clock.next_horizon_us()
        self._execute(_SQL["keep_clock"], (str(horizon_us),))
        return horizon_us
