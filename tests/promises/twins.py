"""Fleets that are broken in one place each, to show that the promises' checkers would notice.

``python twins.py NAME serve …`` breaks one thing and then is ``dask-fleet serve …``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import msgspec


def ack_before_commit() -> None:
    """Answer first; write a moment later, in the background."""
    from dask_fleet.controller.controller import Controller
    from dask_fleet.model.jobs import Accepted, JobRecord, NewRun

    honest = Controller._accept

    async def hasty(self: Controller, new: NewRun) -> Accepted:
        async def later() -> None:
            await asyncio.sleep(0.2)
            await honest(self, new)

        self._spawn(later(), "late-commit")
        job = JobRecord(
            seq=0,
            job_id=new.job_id,
            tenant=new.tenant,
            service=new.service,
            endpoint=new.endpoint,
            version=new.version,
            params=new.params,
            user=new.user,
            pure=new.policy.pure,
            created_us=self.clock.now_us(),
            policy=new.policy,
        )
        return Accepted(job=job, opened=True, claimed=False)

    Controller._accept = hasty  # type: ignore[method-assign]


def synchronous_normal() -> None:
    """Let SQLite commit without waiting for the disk."""
    from dask_fleet.ledger.sqlite import SQLiteLedger

    honest = SQLiteLedger.__init__

    def lax(self: SQLiteLedger, *args: Any, **kwargs: Any) -> None:
        honest(self, *args, **{**kwargs, "synchronous": "NORMAL"})

    SQLiteLedger.__init__ = lax  # type: ignore[method-assign]


def check_then_insert() -> None:
    """Look a request up, and if it is not there insert it: two steps, between which another may do the same."""
    from dask_fleet.controller.controller import Controller
    from dask_fleet.ledger.sqlite import SQLiteLedger
    from dask_fleet.model.ids import job_id
    from dask_fleet.model.jobs import Accepted, NewRun

    honest = SQLiteLedger.accept
    known: dict[str, str] = {}
    count = 0

    async def racy(self: SQLiteLedger, new: NewRun, *, claim_for: str | None = None) -> Accepted:
        nonlocal count
        found = await self.get(known.get(new.job_id, new.job_id))
        if found is not None:
            return Accepted(job=found, opened=False, claimed=False)
        count += 1
        own_id = job_id(tenant="", service="", endpoint="", version="", params=b"", nonce=str(count))
        accepted = await honest(self, msgspec.structs.replace(new, job_id=own_id), claim_for=claim_for)
        known[new.job_id] = own_id
        return accepted

    async def many(self: Controller, key: str, new: NewRun) -> Accepted:
        return await self._accept(new)

    SQLiteLedger.accept = racy  # type: ignore[method-assign]
    Controller._single = many  # type: ignore[method-assign]


def no_fence() -> None:
    """Take an outcome for that of the current attempt, whoever sends it and whichever attempt it was."""
    from dask_fleet.controller.agents import AgentHandle
    from dask_fleet.controller.outcomes import Outcomes
    from dask_fleet.protocol.frames import Outcome

    honest = Outcomes._record

    async def trusting(self: Outcomes, handle: AgentHandle, outcome: Outcome) -> None:
        job = self._dispatcher.by_seq.get(outcome.seq)
        if job is not None:
            outcome = msgspec.structs.replace(outcome, run=job.run, attempt=job.attempt)
        await honest(self, handle, outcome)

    Outcomes._record = trusting  # type: ignore[method-assign]


TWINS: dict[str, Callable[[], None]] = {
    "ack-before-commit": ack_before_commit,
    "synchronous-normal": synchronous_normal,
    "check-then-insert": check_then_insert,
    "no-fence": no_fence,
}


if __name__ == "__main__":
    TWINS[sys.argv.pop(1)]()
    from dask_fleet.cli.main import main

    main()
