"""The one writer: statements on the event loop, fsync in a thread, one commit for all that gathered meanwhile.

Running the statements in the thread as well would be the obvious way, and was the first one. But each of them lets go of
the GIL and has to win it back from a busy event loop: a batch of fourteen operations then took 2.4 ms, of which 0.6 ms were
work. On the loop nobody contends, and what remains for the thread, the commit with its fsync, holds no GIL at all.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any

import apsw

from dask_fleet.ledger.threads import JOIN_TIMEOUT_S, Operation, Steps, deliver, take
from dask_fleet.ledger.writes import Writes
from dask_fleet.model.errors import FleetError, InternalError, LedgerFull, LedgerUnavailable

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

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system calls a full disk. SQLite has its own name for it only where a write into a file finds no room: where the
index of its log should grow, a quota is used up, or the disk notices at the fsync, it speaks of an I/O error."""


LOOP_ROWS = 250
"""Most rows written in one turn of the loop: about 3 ms."""

REST_S = 0.2
"""How long nothing must be asked before the log is copied into the database."""

_BUSY_TIMEOUT_MS = 5_000
"""How long the thread waits for a lock that another program holds on the file. The loop does not wait at all."""


class _TouchedError(Exception):
    """An operation refused after it had written."""


Work = Callable[[list[Operation]], None]


class GroupCommit:
    """Runs the operations that have gathered in one transaction with one fsync.

    An operation refuses by raising a `FleetError` before its first write; then the others of its batch are not touched. Any
    other exception rolls the batch back, and each of its operations is run again in a transaction of its own, in the thread.

    The connection is used by one side at a time: by the loop while `_busy` is false, by the thread while it works off what
    the loop has handed it.
    """

    def __init__(self, connection: Any, writes: Writes) -> None:
        self._connection = connection
        self._writes = writes
        self._operations: deque[Operation] = deque()
        self._jobs: SimpleQueue[tuple[Work, list[Operation]] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._busy = False
        self._scheduled = False
        self._closing = False
        self._rest: asyncio.TimerHandle | None = None
        self._log_pages = 0
        self.refusing: str | None = None
        """Why the last commit was refused by the medium; ``None`` once one has succeeded again."""
        connection.set_wal_hook(self._on_commit)
        connection.set_busy_timeout(0)

    # ------------------------------------------------------------------ on the loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; from now on the connection is this object's alone, and all but the thread's work happens on `loop`."""
        self._loop = loop
        # A daemon, so that a process whose owner forgot to close can still end: a durable ledger needs no goodbye.
        self._thread = threading.Thread(target=self._run, name="fleet-ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., Any], *args: Any, rows: int = 1, long: bool = False) -> asyncio.Future[Any]:
        """Queue ``call(*args)``, which changes about `rows` rows, and return the future of its value.

        One that is `long` reads or deletes much: it runs in the thread, alone in its transaction.
        """
        if self._loop is None or self._closing:
            raise LedgerUnavailable("the ledger is closed")
        future = self._loop.create_future()
        self._operations.append(Operation(call, args, rows, future, long=long))
        self._schedule()
        return future

    def submit_steps(self, steps: Steps, *args: Any) -> asyncio.Future[Any]:
        """Queue ``steps(*args)``, alone in its transaction, each of its steps in a turn of the loop, and return the future
        of what it returns.

        For a write of more rows than one turn may take. In the thread each of its statements would have to win the GIL back
        from a loop that may be busy just then.
        """
        future = self.submit(_run_through, steps, *args, long=True)
        self._operations[-1].steps = steps
        return future

    async def stop(self) -> None:
        """Run what was queued, then end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing = True
        if not self._busy and not self._operations:
            self._jobs.put(None)
        await asyncio.to_thread(thread.join, JOIN_TIMEOUT_S)
        if thread.is_alive():
            log.error("the thread of the ledger did not end in time", extra={"ledger_thread": thread.name})

    @property
    def has_chores(self) -> bool:
        """Whether the log is worth a checkpoint."""
        return self._log_pages >= IDLE_CHECKPOINT_PAGES

    def _schedule(self) -> None:
        # Not at once: whatever else this turn of the loop submits shares the commit.
        if not self._busy and not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        if self._busy or not self._operations:
            return
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._operations[0].long:
            op = self._operations.popleft()
            if op.steps is None:
                self._hand_over(self._run_in_thread, [op])
            else:
                self._begin_steps(op, op.steps)
            return
        batch = take(self._operations, LOOP_ROWS)
        try:
            self._execute(batch)
        except Exception:  # noqa: BLE001 - the medium's fault or an operation's: the thread finds out whose, and may wait
            self._roll_back()
            self._hand_over(self._run_in_thread, batch)
        else:
            self._hand_over(self._commit, batch)

    def _begin_steps(self, op: Operation, steps: Steps) -> None:
        self._busy = True
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._writes.begin()
        except Exception:  # noqa: BLE001 - as above
            self._roll_back()
            self._hand_over(self._run_in_thread, [op])
        else:
            self._step(op, steps(*op.args[1:]))

    def _step(self, op: Operation, pieces: Generator[None, None, Any]) -> None:
        try:
            next(pieces)
        except StopIteration as end:
            op.value = end.value
            self._hand_over(self._commit, [op])
        except Exception:  # noqa: BLE001 - as above
            self._roll_back()
            self._hand_over(self._run_in_thread, [op])
        else:
            assert self._loop is not None
            self._loop.call_soon(self._step, op, pieces)

    def _hand_over(self, work: Work, batch: list[Operation]) -> None:
        self._busy = True
        self._jobs.put((work, batch))

    def _worked(self, batch: list[Operation]) -> None:
        """The thread has let go of the connection."""
        self._busy = False
        deliver(batch)
        if self._log_pages >= CHECKPOINT_PAGES:
            # After the answers: they need not wait for it.
            self._hand_over(self._checkpoint, [])
        elif self._operations:
            self._schedule()
        elif self._closing:
            self._jobs.put(None)
        elif self.has_chores and self._loop is not None:
            self._rest = self._loop.call_later(REST_S, self._use_pause)

    def _use_pause(self) -> None:
        self._rest = None
        if not self._busy and not self._scheduled and not self._closing:
            self._hand_over(self._checkpoint, [])

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        assert self._loop is not None
        try:
            while (job := self._jobs.get()) is not None:
                work, batch = job
                work(batch)
                try:
                    self._loop.call_soon_threadsafe(self._worked, batch)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    log.debug("no loop to deliver to")
                    return
                del job, batch
        finally:
            self._checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._connection.close()

    def _commit(self, batch: list[Operation]) -> None:
        """Make durable what the loop has executed."""
        try:
            self._connection.execute("COMMIT")
            self._writes.committed()
            self.refusing = None
        except apsw.Error as exc:
            full = self._is_full(exc)
            self._roll_back()
            self._refuse(batch, exc, full=full)

    def _run_in_thread(self, batch: list[Operation]) -> None:
        """Execute and commit; if it cannot be done together, each operation by itself."""
        self._connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        try:
            self._run_batch(batch)
        finally:
            self._connection.set_busy_timeout(0)

    def _run_batch(self, batch: list[Operation]) -> None:
        try:
            self._execute(batch)
            self._connection.execute("COMMIT")
            self._writes.committed()
            self.refusing = None
        except MEDIUM_ERRORS as exc:
            full = self._is_full(exc)
            self._roll_back()
            self._refuse(batch, exc, full=full)
        except Exception as exc:  # noqa: BLE001 - whatever an operation raises belongs to its caller, not to this thread
            self._roll_back()
            if len(batch) == 1:
                batch[0].error = _as_error(exc)
            else:
                for op in batch:
                    self._run_batch([op])

    def _checkpoint(self, _batch: list[Operation] | None = None, *, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> None:
        try:
            self._connection.wal_checkpoint(mode=mode)
        except apsw.Error as exc:
            # Nothing is lost: the log holds it all, and the next commit tries again.
            log.warning("the ledger's log could not be copied into the database", extra={"error": repr(exc)})
        self._log_pages = 0

    # ------------------------------------------------------------------ on either side

    def _execute(self, batch: list[Operation]) -> None:
        connection = self._connection
        total_changes = connection.total_changes
        connection.execute("BEGIN IMMEDIATE")
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

    def _on_commit(self, _connection: Any, _database: str, pages: int) -> int:
        self._log_pages = pages
        return 0

    def _roll_back(self) -> None:
        self._writes.rolled_back()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            log.exception("the ledger could not roll back")

    def _is_full(self, exc: apsw.Error) -> bool:
        """Whether the disk, or the user's share of it, is full. To be asked before the connection does anything else."""
        if isinstance(exc, apsw.IOError | apsw.CantOpenError):
            return self._connection.system_errno in NO_ROOM
        return isinstance(exc, apsw.FullError)

    def _refuse(self, batch: list[Operation], exc: apsw.Error, *, full: bool) -> None:
        log.error(
            "the ledger could not be written",
            extra={"error": repr(exc), "code": getattr(exc, "extendedresult", None), "operations": len(batch)},
        )
        self.refusing = "the ledger's disk is full" if full else f"the ledger cannot be written: {exc}"
        for op in batch:
            if full:
                op.error = LedgerFull(f"{self.refusing}: nothing was accepted; free space there", retry_after_s=5.0)
            else:
                op.error = LedgerUnavailable(self.refusing, retry_after_s=5.0)
            op.error.__cause__ = exc


def _run_through(steps: Steps, *args: Any) -> Any:
    """Run all steps at once."""
    pieces = steps(*args)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


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
