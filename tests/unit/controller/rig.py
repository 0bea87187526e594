"""A controller on a ledger in memory, with agents that are nothing but a list of the frames they were sent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dask_fleet.controller.agents import AgentHandle
from dask_fleet.controller.controller import Controller
from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.failure import Blame, Cause, Failure
from dask_fleet.model.ids import job_id
from dask_fleet.model.jobs import JobRecord, NewRun, Policy
from dask_fleet.model.manifest import EndpointManifest, Manifest, ServiceManifest
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import (
    HEARTBEAT_S,
    PROTOCOL_VERSION,
    Ack,
    AttemptRef,
    Cancel,
    Frame,
    Heartbeat,
    Hello,
    Outcome,
    Ready,
    ServerFrame,
    Start,
)
from dask_fleet.results.memory import MemoryResultStore

VERSION = "v1"
ENDPOINT = EndpointManifest(name="f", doc="", parameters={"type": "object"}, order=(), returns="json")
MANIFEST = Manifest(
    services=(ServiceManifest(name="s", doc="", version=VERSION, target="s.py", endpoints=(ENDPOINT,)),)
)
F = TypeVar("F", bound=Frame)


class HandClock:
    """Time that moves by hand: `us` is all of it, `jumped_us` only the wall clock's."""

    def __init__(self) -> None:
        self.us = 1_800_000_000_000_000
        self.jumped_us = 0

    def now_us(self) -> int:
        return self.us + self.jumped_us

    def monotonic(self) -> float:
        return self.us / 1e6


class Side:
    """An agent as the server sees it over one connection."""

    def __init__(self, rig: Rig, handle: AgentHandle | None = None) -> None:
        self._rig = rig
        self.handle = handle  # type: ignore[assignment]
        self.frames: list[ServerFrame] = []
        self.put = self.frames.append  # one bound method: by it the session knows its connection

    handle: AgentHandle

    def got(self, kind: type[F]) -> list[F]:
        """Return the frames of that kind so far."""
        return [frame for frame in self.frames if isinstance(frame, kind)]

    def attempts(self) -> list[tuple[int, int]]:
        """Return what it was told to run, in order."""
        return [(frame.seq, frame.attempt) for frame in self.got(Start)]

    def acks(self) -> list[tuple[int, int]]:
        return [(frame.seq, frame.attempt) for frame in self.got(Ack)]

    def cancels(self) -> list[tuple[int, int]]:
        return [(frame.seq, frame.attempt) for frame in self.got(Cancel)]

    def ready(self, version: str = VERSION) -> None:
        self._rig.controller.sessions.receive(self.handle, [Ready({"s": version}, {}, self.handle.slots)])

    async def deliver(self, *outcomes: Outcome) -> None:
        self._rig.controller.sessions.receive(self.handle, list(outcomes))
        await self._rig.settle()

    def drop(self) -> None:
        """Lose the connection."""
        self._rig.controller.sessions.detach(self.handle, self.put)


class Rig:
    """The controller under test."""

    def __init__(self, *, ledger: MemoryLedger | None = None, clock: HandClock | None = None, **options: Any) -> None:
        self.clock = clock or HandClock()
        self.ledger = ledger or MemoryLedger(clock=self.clock)
        self.controller = Controller(
            ledger=self.ledger,
            results=MemoryResultStore(),
            manifest=MANIFEST,
            spool=Path("/nonexistent"),
            clock=self.clock,
            **options,
        )

    async def __aenter__(self) -> Self:
        await self.ledger.open()
        await self.controller.start()
        await self.settle()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await self.controller.close()

    # ------------------------------------------------------------------ agents

    def agent(
        self,
        agent_id: str = "local-a",
        *,
        slots: int = 1,
        nworkers: int = 1,
        held: list[AttemptRef] | None = None,
        ready: bool = True,
        ledger_id: str | None = None,
    ) -> Side:
        """Let an agent dial in."""
        side = Side(self)
        hello = Hello(
            PROTOCOL_VERSION,
            agent_id,
            agent_id.rpartition("-")[0],
            1,
            slots,
            self.ledger.ledger_id if ledger_id is None else ledger_id,
            held or [],
            nworkers=nworkers,
            nthreads=max(slots // nworkers, 1),
        )
        side.handle = self.controller.sessions.attach(hello, side.put)
        if ready:
            side.ready()
        return side

    # ------------------------------------------------------------------ jobs

    async def submit(self, name: str = "a", **changes: Any) -> JobRecord:
        """Ask for a job; `policy` takes the members of a Policy."""
        policy = Policy(**changes.pop("policy", {}))
        job = job_id(tenant="default", service="s", endpoint="f", version=VERSION, params=name.encode())
        new = NewRun(
            job_id=job,
            tenant="default",
            service="s",
            endpoint="f",
            version=VERSION,
            params=b"{}",
            user=changes.pop("user", "ada"),
            policy=policy,
            **changes,
        )
        accepted = await self.controller.intake.submit(new)
        await self.settle()
        return accepted.job

    async def job(self, job: JobRecord) -> JobRecord:
        """Return what the ledger says of a job now."""
        found = await self.ledger.get(job.job_id)
        assert found is not None
        return found

    # ------------------------------------------------------------------ time

    async def settle(self) -> None:
        """Let everything that can go on go on."""
        for _ in range(200):
            await asyncio.sleep(0)

    async def advance(self, seconds: float, *, beats: bool = True) -> None:
        """Let time pass, with the heartbeats of connected agents (unless they are silent), and alarms ring."""
        await self.settle()
        left = seconds
        while left > 0:
            step = min(left, HEARTBEAT_S)
            left -= step
            self.clock.us += round(step * 1e6)
            if beats:
                for handle in self.controller.agents:
                    if handle.connected:
                        self.controller.sessions.receive(handle, [Heartbeat(0)])
            with contextlib.suppress(LedgerUnavailable):  # as the server does
                await self.controller.sessions.leases.step()
            self.controller._alarms._ring()
            await self.settle()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a plain test of a coroutine function; every test has a minute."""

    def plain() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test()

        asyncio.run(bounded())

    plain.__name__ = test.__name__
    plain.__doc__ = test.__doc__
    return plain


def outcome(job: JobRecord, state: AttemptState = AttemptState.SUCCEEDED, *, attempt: int = 1, body: bytes = b"1",
            cause: Cause | None = None, blame: Blame = Blame.NONE, worker: str = "w",
            died_with: str = "") -> Outcome:
    """Return an outcome of an attempt of `job`."""
    ok = state is AttemptState.SUCCEEDED
    return Outcome(
        seq=job.seq,
        run=job.run,
        attempt=attempt,
        state=state,
        worker=worker,
        finished_us=1,
        failure=Failure(cause=cause, message="m") if cause else None,
        media_type="application/json" if ok else "",
        digest=hashlib.sha256(body).hexdigest() if ok else "",
        size=len(body) if ok else 0,
        body=body if ok else None,
        blame=blame,
        died_with=died_with,
    )


def ref(job: JobRecord, attempt: int = 1) -> AttemptRef:
    return AttemptRef(job.seq, job.run, attempt)

