"""Forgetting: what retention deletes, in pieces small enough that no request waits for long."""

from __future__ import annotations

from typing import Any

from dask_fleet.ledger import rows, statements
from dask_fleet.ledger.changes import IDEMPOTENCY_KEPT_US
from dask_fleet.ledger.threads import MAX_ROWS
from dask_fleet.ledger.writes import Writes

_SQL = {**statements.load("retention"), "set_meta": statements.load("writes")["set_meta"]}

RESULTS_A_BATCH = 150
"""A result forgotten changes up to three rows."""


class Retention:
    """The deletions of the SQLite ledger, each to be called inside a transaction, in the writer's thread."""

    def __init__(self, connection: Any, writes: Writes) -> None:
        self._execute = connection.execute
        self._total_changes = connection.total_changes
        self._writes = writes

    def forget_results(self, limit: int) -> int:
        """Forget at most `limit` expired results; return how many. Their locations are doomed in the same transaction."""
        expired = self._execute(_SQL["expired_results"], (self._writes.now_us, limit)).fetchall()
        for key, location in expired:
            if location is not None:
                self._execute(_SQL["doom_location"], (location,))
            self._execute(_SQL["delete_result"], (key,))
            self._execute(_SQL["forget_result"], rows.run_of_result(key))
        return len(expired)

    def doomed_locations(self) -> list[str]:
        """Return what the result store must delete."""
        return [location for (location,) in self._execute(_SQL["doomed_locations"])]

    def forget_locations(self, locations: tuple[str, ...]) -> None:
        """The result store has deleted these."""
        for location in locations:
            self._execute(_SQL["forget_location"], (location,))

    def purge_jobs(self, finished_before_us: int, limit: int) -> int:
        """Delete jobs until `limit` or about `MAX_ROWS` rows are reached; return how many (0: nothing is left)."""
        before = self._total_changes()
        purged = 0
        last_seq = 0
        for seq, tenant, tags in self._execute(_SQL["purgeable_jobs"], (finished_before_us, limit)).fetchall():
            self._purge_job(seq, tenant, tags)
            last_seq = max(last_seq, seq)
            purged += 1
            if self._total_changes() - before >= MAX_ROWS:
                break
        if last_seq:
            # Of all handles given so far, so that a purge of the youngest job does not set its number free.
            self._execute(_SQL["set_meta"], ("last_seq_purged", str(self._writes.last_seq)))
        return purged

    def _purge_job(self, seq: int, tenant: str, tags: str | None) -> None:
        execute = self._execute
        results = (rows.result_id(seq, 0), rows.result_id(seq + 1, 0))
        for (location,) in execute(_SQL["superseded_locations"], results).fetchall():
            execute(_SQL["doom_location"], (location,))
        execute(_SQL["delete_results"], results)
        for tag in rows.tags_from(tags):
            execute(_SQL["delete_tag"], (tenant, tag, seq))
        for name in ("delete_events", "delete_attempts", "delete_past_runs", "delete_large_params", "delete_job"):
            execute(_SQL[name], (seq,))

    def purge_idempotency(self) -> int:
        """Delete idempotency keys older than a day; return how many."""
        before = self._total_changes()
        self._execute(_SQL["purge_idempotency"], (self._writes.now_us - IDEMPOTENCY_KEPT_US, MAX_ROWS))
        return int(self._total_changes() - before)
