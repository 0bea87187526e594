"""A thread that owns a connection: callers of the event loop hand it operations and await what they give.

Handing over is what a ledger's calls pay most for after the fsync, so it is kept bare: a deque, one lock as a doorbell, and
one ``call_soon_threadsafe`` for all results of a batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from dask_fleet.model.errors import LedgerUnavailable

log = logging.getLogger(__name__)

MAX_ROWS = 500
"""Most rows that one batch writes: what one caller waits for the others."""

JOIN_TIMEOUT_S = 30.0


Steps = Callable[..., Generator[None, None, Any]]
"""Work that lets go after each piece; what it returns in the end is its value."""


class Operation:
    """A call that waits for the thread."""

    __slots__ = ("args", "call", "error", "future", "long", "rows", "steps", "value")

    def __init__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        rows: int,
        future: asyncio.Future[Any],
        *,
        long: bool = False,
    ) -> None:
        self.call = call
        self.args = args
        self.rows = rows
        self.future = future
        self.long = long
        self.steps: Steps | None = None
        """Makes the same work piece by piece, for a turn of the loop each."""
        self.value: Any = None
        self.error: BaseException | None = None


def deliver(batch: list[Operation]) -> None:
    """Give each caller its value or error. On the loop's thread."""
    for op in batch:
        if op.future.done():  # its caller was cancelled; what it asked for is done all the same
            continue
        if op.error is None:
            op.future.set_result(op.value)
        else:
            op.future.set_exception(op.error)


def take(operations: deque[Operation], max_rows: int) -> list[Operation]:
    """Take operations off the queue that together change at most `max_rows` rows, or one; none that is long."""
    batch = [operations.popleft()]
    rows = batch[0].rows
    while operations and not operations[0].long:
        rows += operations[0].rows
        if rows > max_rows:
            break
        batch.append(operations.popleft())
    return batch


class OperationThread(ABC):
    """Runs operations in order, in batches of what has gathered meanwhile; alone it runs one at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._operations: deque[Operation] = deque()
        self._doorbell = threading.Lock()
        self._doorbell.acquire()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; results are delivered on `loop`, from which alone `submit` and `stop` may be called."""
        self._loop = loop
        # A daemon, so that a process whose owner forgot to close can still end: a durable ledger needs no goodbye.
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., Any], *args: Any, rows: int = 1) -> asyncio.Future[Any]:
        """Queue ``call(*args)``, which changes about `rows` rows, and return the future of its value."""
        if self._loop is None or self._closing:
            raise LedgerUnavailable("the ledger is closed")
        future = self._loop.create_future()
        self._operations.append(Operation(call, args, rows, future))
        self._ring()
        return future

    async def stop(self) -> None:
        """Run what was queued, then end the thread."""
        if self._thread is None:
            return
        self._closing = True
        self._ring()
        thread, self._thread = self._thread, None
        await asyncio.to_thread(thread.join, JOIN_TIMEOUT_S)
        if thread.is_alive():
            log.error("the thread of the ledger did not end in time", extra={"ledger_thread": self._name})

    @abstractmethod
    def run_batch(self, batch: list[Operation]) -> None:
        """Give each operation its value or error; must not raise. Called in the thread."""

    @abstractmethod
    def finish(self) -> None:
        """Called in the thread as its last act."""

    def _ring(self) -> None:
        # Only the loop's thread releases, so a lock seen locked stays so until it is released here.
        if self._doorbell.locked():
            self._doorbell.release()

    def _run(self) -> None:
        assert self._loop is not None
        call_soon = self._loop.call_soon_threadsafe
        try:
            while True:
                self._doorbell.acquire()
                while self._operations:
                    batch = take(self._operations, MAX_ROWS)
                    self.run_batch(batch)
                    try:
                        call_soon(deliver, batch)
                    except RuntimeError:  # the loop is closed: nobody waits any more
                        log.debug("no loop to deliver to", extra={"ledger_thread": self._name})
                    del batch
                if self._closing and not self._operations:
                    return
        finally:
            self.finish()
