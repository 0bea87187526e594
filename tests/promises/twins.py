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
    from dask_fleet.controller.intake import Intake
    from dask_fleet.model.jobs import Accepted, JobRecord, NewRun
    from dask_fleet.plugins.clock import SystemClock

    honest = Intake._accept

    async def hasty(self: Intake, new: NewRun) -> Accepted:
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
            created_us=SystemClock().now_us(),
            policy=new.policy,
        )
        return Accepted(job=job, opened=True, claimed=False)

    Intake._accept = hasty  # type: ignore[method-assign]


def synchronous_normal() -> None:
    """Let SQLite commit without waiting for the disk."""
    from dask_fleet.ledger.sqlite import SQLiteLedger

    honest = SQLiteLedger.__init__

    def lax(self: SQLiteLedger, *args: Any, **kwargs: Any) -> None:
        honest(self, *args, **{**kwargs, "synchronous": "NORMAL"})

    SQLiteLedger.__init__ = lax  # type: ignore[method-assign]


def check_then_insert() -> None:
    """Look a request up, and if it is not there insert it: two steps, between which another may do the same."""
    from dask_fleet.controller.intake import Intake
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
        await asyncio.sleep(0.05)  # the way to a database and back
        count += 1
        own_id = job_id(tenant="", service="", endpoint="", version="", params=b"", nonce=str(count))
        accepted = await honest(self, msgspec.structs.replace(new, job_id=own_id), claim_for=claim_for)
        known[new.job_id] = own_id
        return accepted

    async def many(self: Intake, key: str, new: NewRun) -> Accepted:
        return await self._accept(new)

    SQLiteLedger.accept = racy  # type: ignore[method-assign]
    Intake._single = many  # type: ignore[method-assign]


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
            self._dispatcher.by_seq[outcome.seq] = msgspec.structs.replace(job, agent=handle.agent_id)
        await honest(self, handle, outcome)

    Outcomes._record = trusting  # type: ignore[method-assign]


def no_epoch() -> None:
    """Take what is said of a cluster for said of its present scheduler, whoever says it and whichever epoch it was of."""
    from dask_fleet.controller.agents import AgentHandle
    from dask_fleet.controller.clusters.book import Entry
    from dask_fleet.controller.clusters.hearing import ClusterFact, Hearing

    honest = Hearing.receive

    def of_any_epoch(self: Hearing, handle: AgentHandle, cluster: str, epoch: int) -> Entry | None:
        return self._book.entries.get(cluster)

    def trusting(self: Hearing, handle: AgentHandle, frame: ClusterFact) -> None:
        entry = self._book.entries.get(getattr(frame, "cluster", ""))
        if entry is not None:
            frame = msgspec.structs.replace(frame, epoch=entry.record.epoch)
        honest(self, handle, frame)

    Hearing._of_epoch = of_any_epoch  # type: ignore[method-assign]
    Hearing.receive = trusting  # type: ignore[method-assign]


def open_page() -> None:
    """Answer one page to whoever asks, as a debugging page that was forgotten would."""
    from dask_fleet.server import app, auth, routes_meta

    app.OPEN_PATHS = app.OPEN_PATHS | {"/v1/status"}
    honest = auth.principal_of
    nobody = auth.Principal(user="nobody", tenant="default", scopes=frozenset({"read"}), token_id="")

    def lax(request: Any) -> auth.Principal:
        return nobody if request.url.path == "/v1/status" else honest(request)

    routes_meta.principal_of = lax  # type: ignore[attr-defined]


def dask_client() -> None:
    """Hold a Dask client in the API's process, with its scheduler and what that listens on, as others do."""
    from dask_fleet.controller.controller import Controller

    honest = Controller.start
    held: list[Any] = []

    async def with_client(self: Controller) -> None:
        import distributed

        cluster = await asyncio.to_thread(
            distributed.LocalCluster, n_workers=0, processes=True, host="0.0.0.0", scheduler_port=0, dashboard_address=":0"
        )
        held.append(cluster)
        held.append(await asyncio.to_thread(distributed.Client, cluster))
        await honest(self)

    Controller.start = with_client  # type: ignore[method-assign]


def unpickles_bodies() -> None:
    """Take parameters as a pickle too, which is so convenient for Python callers."""
    import pickle

    from dask_fleet.server import submit

    honest = submit.read_decoded

    async def convenient(scope: Any, receive: Any, decode: Any, **rest: Any) -> Any:
        headers = dict(scope["headers"])
        if headers.get(b"content-type") == b"application/x-python-pickle":
            pickle.loads((await receive())["body"])
            return decode(b"{}")
        return await honest(scope, receive, decode, **rest)

    submit.read_decoded = convenient  # type: ignore[assignment]


def unpickles_results() -> None:
    """Look into results as they come in, as a Dask client in the server's process does when it gathers them."""
    from distributed.protocol import pickle

    from dask_fleet.controller.outcomes import Outcomes
    from dask_fleet.protocol.frames import Outcome

    honest = Outcomes._store

    async def curious(self: Outcomes, job: Any, outcome: Outcome) -> Any:
        if outcome.media_type != "application/json" and outcome.body:
            pickle.loads(outcome.body)
        return await honest(self, job, outcome)

    Outcomes._store = curious  # type: ignore[method-assign]


def fail_together() -> None:
    """Fail every attempt that was in a dying process, as ``concurrent.futures`` does (``BrokenProcessPool``)."""
    from dask_fleet.controller import decisions
    from dask_fleet.controller.agents import AgentHandle
    from dask_fleet.controller.outcomes import Outcomes
    from dask_fleet.model.failure import Blame
    from dask_fleet.protocol.frames import Outcome

    decisions.DEATH_RETRIES = 0
    honest = Outcomes._record

    async def blaming(self: Outcomes, handle: AgentHandle, outcome: Outcome) -> None:
        if outcome.blame is Blame.SHARED:
            outcome = msgspec.structs.replace(outcome, blame=Blame.ALONE)
        await honest(self, handle, outcome)

    Outcomes._record = blaming  # type: ignore[method-assign]


def stock_http() -> None:
    """Serve HTTP by uvicorn's own protocol: no deadlines, no limits."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    from dask_fleet.server import serve

    class Stock(HttpToolsProtocol):
        def __init__(self, *args: Any, edge: object, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    serve.FleetHTTPProtocol = Stock  # type: ignore[misc, assignment]


def scans_on_read() -> None:
    """Read whatever has come before anything else, and look after all deadlines at each read."""
    import time

    from dask_fleet.server.http_protocol import FleetHTTPProtocol
    from dask_fleet.server.lane import Lane

    honest = FleetHTTPProtocol.data_received

    def busy(self: FleetHTTPProtocol, data: bytes) -> None:
        watch, now = self.edge.watch, time.monotonic()
        for connection in 2 * list(watch.connections):  # before and after what has come
            age_s = now - (connection.since or now)
            watch.deadlines.verdict(connection.phase, age_s=min(0.0, age_s), stalled_s=0.0)
        honest(self, data)

    FleetHTTPProtocol.data_received = busy  # type: ignore[method-assign]
    Lane.enter = lambda *_: False  # type: ignore[method-assign, assignment]


def reserves_ahead() -> None:
    """Give a large body all that it may ever need before it is read on, whoever's it is, and let nobody give way."""
    from dask_fleet.server.body_budget import SMALL_BODY_BYTES, BodyBudget, Reservation
    from dask_fleet.server.shares import Share, Shares

    all_there_is = 16 << 20
    honest = Reservation.cover

    async def ahead(self: Reservation, size: int) -> None:
        await honest(self, max(size, all_there_is) if size > SMALL_BODY_BYTES else size)

    def nobody(self: Shares, now: float) -> Share | None:
        return None

    def no_elder(self: Shares) -> None:
        self._elder = Share(None)

    def anybodys(self: BodyBudget, user: object = None) -> Reservation:
        return Reservation(self, None)

    BodyBudget.reserve = anybodys  # type: ignore[method-assign]
    Reservation.cover = ahead  # type: ignore[method-assign]
    Shares.victim = nobody  # type: ignore[method-assign]
    Shares._appoint = no_elder  # type: ignore[method-assign]


def gate_first() -> None:
    """Give a batch its place before its body is read."""
    from dask_fleet.server.submit_batch import BATCHES_AT_ONCE, BatchSubmission

    honest = BatchSubmission.__call__
    gate = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def in_the_gate(self: BatchSubmission, scope: Any, receive: Any, principal: Any) -> Any:
        async with gate:
            return await honest(self, scope, receive, principal)

    BatchSubmission.__call__ = in_the_gate  # type: ignore[method-assign]


def endless_leases() -> None:
    """Take every agent for alive for ever, heard of or not."""
    from dask_fleet.controller.leases import LeaseKeeper

    honest = LeaseKeeper.step

    async def patient(self: LeaseKeeper) -> None:
        self._heard.update(self._held)
        await honest(self)

    LeaseKeeper.step = patient  # type: ignore[method-assign]


def hurried() -> None:
    """Nothing broken: the deadlines of 30 s are 12 s, for those who cannot wait for them."""
    from dask_fleet.server import deadlines

    unhurried = deadlines.Deadlines
    deadlines.Deadlines = lambda: unhurried(body_s=12.0, stall_s=12.0)  # type: ignore[assignment, misc]


TWINS: dict[str, Callable[[], None]] = {
    "unpickles-bodies": unpickles_bodies,
    "unpickles-results": unpickles_results,
    "open-page": open_page,
    "dask-client": dask_client,
    "ack-before-commit": ack_before_commit,
    "synchronous-normal": synchronous_normal,
    "check-then-insert": check_then_insert,
    "no-fence": no_fence,
    "no-epoch": no_epoch,
    "endless-leases": endless_leases,
    "fail-together": fail_together,
    "scans-on-read": scans_on_read,
    "reserves-ahead": reserves_ahead,
    "gate-first": gate_first,
    "stock-http": stock_http,
    "hurried": hurried,
}


if __name__ == "__main__":
    TWINS[sys.argv.pop(1)]()
    from dask_fleet.cli.main import main

    main()
