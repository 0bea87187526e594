"""Reads of the SQLite ledger, on a connection that cannot write, in a thread of its own."""

from __future__ import annotations

import json
from typing import Any

import apsw

from dask_fleet.ledger import rows, statements
from dask_fleet.ledger.cluster_reads import ClusterReads
from dask_fleet.ledger.listing import Listing
from dask_fleet.ledger.threads import Operation, OperationThread
from dask_fleet.ledger.writer import MEDIUM_ERRORS
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.jobs import AttemptRecord, EventRecord, JobRecord, StoredResult, TokenRecord
from dask_fleet.model.leases import AgentLease
from dask_fleet.model.states import RunState

_SQL = {**statements.load("reads"), **statements.load("leases")}


class ReaderThread(OperationThread):
    """Runs reads one after the other; one that fails fails alone."""

    def __init__(self, connection: Any) -> None:
        super().__init__("fleet-ledger-reader")
        self._connection = connection

    def run_batch(self, batch: list[Operation]) -> None:
        """Run each for itself."""
        for op in batch:
            try:
                op.value = op.call(*op.args)
            except MEDIUM_ERRORS as exc:
                op.error = LedgerUnavailable(f"the ledger cannot be read: {exc}", retry_after_s=5.0)
                op.error.__cause__ = exc
            except Exception as exc:  # noqa: BLE001 - it belongs to the caller, not to this thread
                op.error = exc

    def finish(self) -> None:
        """Let go."""
        try:
            self._connection.close()
        except apsw.Error as exc:
            raise LedgerUnavailable(f"the ledger could not be closed: {exc}") from exc


class Reads(Listing, ClusterReads):
    """The reads, to be called in the reader's thread."""

    def get(self, job_id: str) -> JobRecord | None:
        """See `Ledger.get`."""
        row = self._execute(_SQL["job_by_id"], (job_id,)).fetchone()
        return None if row is None else self._job(row)

    def get_result(self, seq: int, run: int) -> StoredResult | None:
        """See `Ledger.get_result`."""
        row = self._execute(_SQL["result"], (rows.result_id(seq, run),)).fetchone()
        return None if row is None else rows.result_from_row(row, run)

    def attempts(self, seq: int) -> list[AttemptRecord]:
        """See `Ledger.attempts`."""
        # One snapshot for both: between two an attempt could end and be told twice, or not at all.
        self._execute("BEGIN")
        try:
            found = [rows.attempt_from_row(row) for row in self._execute(_SQL["attempts"], (seq,))]
            row = self._execute(_SQL["job_by_seq"], (seq,)).fetchone()
        finally:
            self._execute("COMMIT")
        running = None if row is None else rows.running_attempt(rows.job_from_row(row, b""))
        return found if running is None else [*found, running]

    def events(self, seq: int, after: int, limit: int) -> list[EventRecord]:
        """See `Ledger.events`."""
        return [rows.event_from_row(row) for row in self._execute(_SQL["events"], (seq, after, limit))]

    def unknown_jobs(self, seqs: tuple[int, ...]) -> list[int]:
        """See `Ledger.unknown_jobs`."""
        return [seq for (seq,) in self._execute(_SQL["unknown_jobs"], (json.dumps(seqs),))]

    def counts(self) -> dict[str, int]:
        """See `Ledger.counts`."""
        return {
            str(state): self._execute(_SQL["count_state"], (state,)).fetchone()[0]
            for state in (RunState.QUEUED, RunState.RUNNING)
        }

    def unknown_locations(self, locations: tuple[str, ...]) -> list[str]:
        """See `Ledger.unknown_locations`."""
        return [location for (location,) in self._execute(_SQL["unknown_locations"], (rows.to_json(locations),))]

    def leases(self, ended_after_us: int) -> list[AgentLease]:
        """See `Ledger.leases`."""
        return [rows.lease_from_row(row) for row in self._execute(_SQL["leases"], (ended_after_us,))]

    def tokens(self) -> list[TokenRecord]:
        """See `Ledger.tokens`."""
        return [rows.token_from_row(row) for row in self._execute(_SQL["tokens"])]

    def _job(self, row: rows.Row) -> JobRecord:
        if row[rows.PARAMS] is not None:
            return rows.job_from_row(row)
        found = self._execute(_SQL["large_params"], (row[0],)).fetchone()
        # Purged between two snapshots: nobody can ask for such a job again.
        return rows.job_from_row(row, b"{}" if found is None else found[0])
