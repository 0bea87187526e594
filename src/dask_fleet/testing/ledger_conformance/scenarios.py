"""How the scenarios of the suite are written: a clock to move, short requests, and a ledger opened for each."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import (
    AttemptEnd,
    JobFilter,
    JobRecord,
    NewRun,
    Policy,
    StoredResult,
)
from dask_fleet.model.states import AttemptState, EventKind, RunEvent
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
SCENARIO_TIMEOUT_S = 60.0


class ManualClock:
    """Time that moves when it is told to."""

    def __init__(self, now_us: int = 1_700_000_000 * SECOND_US) -> None:
        self._now_us = now_us
        self._monotonic = 0.0

    def now_us(self) -> int:
        """Return UTC in microseconds since 1970."""
        return self._now_us

    def monotonic(self) -> float:
        """Return seconds that `jump` does not touch."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_us += round(seconds * SECOND_US)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock, forth or back; no time passes."""
        self._now_us += round(seconds * SECOND_US)


def request(name: str = "job-a", **changes: Any) -> NewRun:
    """Return a request; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "job_id": name, "tenant": "default", "service": "flights", "endpoint": "delay", "version": "1+abc",
        "params": b'{"month":1}', "user": "ada", "policy": Policy(cache_s=3600.0, retries=2),
    }
    return NewRun(**(fields | changes))


def result(body: bytes = b"42", **changes: Any) -> StoredResult:
    """Return a small result; `changes` replace its fields."""
    fields: dict[str, Any] = {"media_type": "application/json", "digest": "ab" * 32, "size": len(body), "body": body}
    return StoredResult(**(fields | changes))


def end_of(job: JobRecord, event: RunEvent = RunEvent.SUCCEED, **changes: Any) -> AttemptEnd:
    """Return the end of a job's current attempt; `changes` replace its fields."""
    states = {
        RunEvent.SUCCEED: AttemptState.SUCCEEDED, RunEvent.CANCEL: AttemptState.CANCELLED,
        RunEvent.FAIL: AttemptState.FAILED, RunEvent.REQUEUE: AttemptState.FAILED,
    }
    failed = event in {RunEvent.FAIL, RunEvent.REQUEUE}
    fields: dict[str, Any] = {
        "seq": job.seq, "run": job.run, "attempt": job.attempt, "attempt_state": states[event], "run_event": event,
        "worker": "w-1", "finished_us": (job.started_us or 0) + 5,
        "failure": Failure.bounded(Cause.EXCEPTION, "boom", type="ValueError") if failed else None,
        "result": result() if event is RunEvent.SUCCEED else None,
    }
    return AttemptEnd(**(fields | changes))


def some(job: JobRecord | None) -> JobRecord:
    """Return the record of a write that must not have been refused."""
    assert job is not None, "the ledger refused"
    return job


async def scenario_timeout(awaitable: Awaitable[Any]) -> Any:
    """Await, but not for ever."""
    async with asyncio.timeout(SCENARIO_TIMEOUT_S):
        return await awaitable


Scenario = Callable[[Any, Ledger, ManualClock], Awaitable[None]]


def scenario(test: Scenario) -> Callable[[Any], None]:
    """Make a test of a coroutine that takes an open ledger and its clock."""

    def collected(self: LedgerMaker) -> None:
        async def act() -> None:
            clock = ManualClock()
            ledger = self.make_ledger(clock)
            await ledger.open()
            try:
                async with asyncio.timeout(SCENARIO_TIMEOUT_S):
                    await test(self, ledger, clock)
            finally:
                await ledger.close()

        asyncio.run(act())

    collected.__name__ = test.__name__
    collected.__doc__ = test.__doc__
    collected.__qualname__ = test.__qualname__
    return collected


async def kinds(ledger: Ledger, seq: int) -> list[EventKind]:
    """Return the kinds of a job's events."""
    return [event.kind for event in await ledger.events(seq)]


async def listed(ledger: Ledger, where: JobFilter, *, limit: int = 50) -> list[str]:
    """Return the ids that all pages of a listing give."""
    found: list[str] = []
    before: int | None = None
    while True:
        page = await ledger.list_jobs(where, before_seq=before, limit=limit)
        assert len(page.jobs) <= limit
        found += [job.job_id for job in page.jobs]
        if page.next_before_seq is None:
            return found
        assert before is None or page.next_before_seq < before, "the cursor stands still"
        before = page.next_before_seq


class LedgerMaker(ABC):
    """Says how a ledger is made."""

    @abstractmethod
    def make_ledger(self, clock: Clock) -> Ledger:
        """Return a ledger that is not open yet; again the same one after it was closed."""

    async def reopened(self, ledger: Ledger, clock: Clock) -> Ledger:
        """Close `ledger` and return an open one with its contents; overridden where the object is the store."""
        await ledger.close()
        again = self.make_ledger(clock)
        await again.open()
        return again
