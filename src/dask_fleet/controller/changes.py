"""Who waits for which job: long polls for its outcome, event streams for any change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from dask_fleet.model.jobs import JobRecord


class Subscription:
    """One event stream's ear: remembers that something changed until it is asked."""

    def __init__(self, *, logs: bool = False) -> None:
        self._changed = asyncio.Event()
        self.hears_logs = logs

    def set(self) -> None:
        """Something changed."""
        self._changed.set()

    async def next(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for a change since the last call; return whether there was one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class Changes:
    """Wakes waiters after a change is durable. Lives on one event loop; nothing here is the truth, the ledger is."""

    def __init__(self) -> None:
        self._waiters: dict[int, list[asyncio.Future[JobRecord]]] = {}
        self._subscriptions: dict[int, list[Subscription]] = {}
        self.closed = False

    def publish(self, job: JobRecord) -> None:
        """Tell of a job's new record: streams of every change, waiters of the outcome."""
        if self._subscriptions:
            self.progressed(job.seq)
        if job.state.is_terminal:
            for waiter in self._waiters.pop(job.seq, ()):
                if not waiter.done():
                    waiter.set_result(job)

    def progressed(self, seq: int) -> None:
        """Tell event streams that there is something new."""
        for subscription in self._subscriptions.get(seq, ()):
            subscription.set()

    def log_grew(self, seq: int) -> None:
        """Tell event streams that show logs that there is more to read."""
        for subscription in self._subscriptions.get(seq, ()):
            if subscription.hears_logs:
                subscription.set()

    def close(self) -> None:
        """Let nobody wait any longer: streams are woken, waiters are told that time is up."""
        self.closed = True
        for ears in self._subscriptions.values():
            for subscription in ears:
                subscription.set()
        for waiters in self._waiters.values():
            for waiter in waiters:
                _give_up(waiter)

    async def outcome(self, seq: int, timeout_s: float) -> JobRecord | None:
        """Return the record once the job's current run has ended, or ``None`` after `timeout_s` or `close`."""
        if self.closed:
            return None
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[JobRecord] = loop.create_future()
        waiters = self._waiters.setdefault(seq, [])
        waiters.append(waiter)
        timer = loop.call_later(timeout_s, _give_up, waiter)  # cheaper than asyncio.timeout on the hot path
        try:
            return await waiter
        except TimeoutError:
            return None
        finally:
            timer.cancel()
            if waiter in waiters:
                waiters.remove(waiter)
                if not waiters and self._waiters.get(seq) is waiters:
                    del self._waiters[seq]

    @contextmanager
    def subscribe(self, seq: int, *, logs: bool = False) -> Iterator[Subscription]:
        """Listen to every change of a job while the block lasts; to the growth of its logs as well, if asked."""
        subscription = Subscription(logs=logs)
        self._subscriptions.setdefault(seq, []).append(subscription)
        try:
            yield subscription
        finally:
            ears = self._subscriptions[seq]
            ears.remove(subscription)
            if not ears:
                del self._subscriptions[seq]


def _give_up(waiter: asyncio.Future[JobRecord]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
