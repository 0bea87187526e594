"""The one writer: group commit in a thread of its own, and all checkpoints."""

from __future__ import annotations

import logging
from typing import Any

import apsw

from dask_fleet.ledger.threads import Operation, OperationThread
from dask_fleet.ledger.writes import Writes
from dask_fleet.model.errors import FleetError, InternalError, LedgerUnavailable

log = logging.getLogger(__name__)

CHECKPOINT_PAGES = 8_000
"""Size of the log (in pages of 4 KiB) from which it is copied into the database. Large, since a page that was changed a
hundred times meanwhile is copied once; small enough to be read through in some tenths of a second after a crash."""

IDLE_CHECKPOINT_PAGES = 1_000
"""The same in a pause, when a checkpoint is in nobody's way."""

MEDIUM_ERRORS = (
    apsw.FullError,
    apsw.IOError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.NoMemError,
    apsw.InterruptError,
)
"""The medium's fault, not the operation's."""


class _TouchedError(Exception):
    """An operation refused after it had written."""


class GroupCommit(OperationThread):
    """Runs the operations that have gathered in one transaction with one fsync.

    An operation refuses by raising a `FleetError` before its first write; then the others of its batch are not touched. Any
    other exception rolls the batch back, and each of its operations is run again in a transaction of its own.
    """

    def __init__(self, connection: Any, writes: Writes) -> None:
        super().__init__("fleet-ledger-writer")
        self._connection = connection
        self._writes = writes
        self._log_pages = 0
        connection.set_wal_hook(self._on_commit)

    def _on_commit(self, _connection: Any, _database: str, pages: int) -> int:
        self._log_pages = pages
        return 0

    def run_batch(self, batch: list[Operation]) -> None:
        """Commit the batch, or as much of it as can be."""
        try:
            self._transaction(batch)
        except MEDIUM_ERRORS as exc:
            self._roll_back()
            self._refuse(batch, exc)
        except Exception as exc:  # noqa: BLE001 - whatever an operation raises belongs to its caller, not to this thread
            self._roll_back()
            if len(batch) == 1:
                batch[0].error = _as_error(exc)
            else:
                for op in batch:
                    self.run_batch([op])
        if self._log_pages >= CHECKPOINT_PAGES:
            self._checkpoint()

    def _transaction(self, batch: list[Operation]) -> None:
        connection = self._connection
        execute, total_changes = connection.execute, connection.total_changes
        execute("BEGIN IMMEDIATE")
        self._writes.begin()
        for op in batch:
            changes = total_changes()
            try:
                op.value = op.call(*op.args)
                op.error = None
            except FleetError as exc:
                if total_changes() != changes:
                    raise _TouchedError from exc
                op.error = exc
        execute("COMMIT")
        self._writes.committed()

    def _roll_back(self) -> None:
        self._writes.rolled_back()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            log.exception("the ledger could not roll back")

    def _refuse(self, batch: list[Operation], exc: apsw.Error) -> None:
        log.error("the ledger could not be written", extra={"error": repr(exc), "operations": len(batch)})
        for op in batch:
            op.error = LedgerUnavailable(f"the ledger cannot be written: {exc}", retry_after_s=5.0)
            op.error.__cause__ = exc

    @property
    def has_chores(self) -> bool:
        """Whether the log is worth a checkpoint."""
        return self._log_pages >= IDLE_CHECKPOINT_PAGES

    def do_chores(self) -> None:
        """Use the pause to keep the log short."""
        self._checkpoint()

    def finish(self) -> None:
        """Copy the whole log into the database and let go."""
        self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._connection.close()

    def _checkpoint(self, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> None:
        try:
            self._connection.wal_checkpoint(mode=mode)
        except apsw.Error as exc:
            # Nothing is lost: the log holds it all, and the next commit tries again.
            log.warning("the ledger's log could not be copied into the database", extra={"error": repr(exc)})
        self._log_pages = 0


def _as_error(exc: Exception) -> Exception:
    if isinstance(exc, _TouchedError):
        cause = exc.__cause__
        assert isinstance(cause, Exception)
        return cause
    if isinstance(exc, apsw.Error):
        error = InternalError("the ledger refused a write that breaks its rules; the server's log has the story")
        error.__cause__ = exc
        log.error("the ledger's schema refused a write", exc_info=exc)
        return error
    return exc
