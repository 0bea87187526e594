"""Takes what agents report: outcomes become ledger changes under the fence, and only then are acknowledged."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections import OrderedDict
from pathlib import Path

import msgspec

from dask_fleet.controller.agents import AgentHandle, agent_home
from dask_fleet.controller.bytes_in_use import BytesInUse
from dask_fleet.controller.changes import Changes
from dask_fleet.controller.decisions import after_attempt, cost_a_process
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.controller.fair_queue import Owner
from dask_fleet.controller.recent import RecentJobs
from dask_fleet.model.errors import LedgerUnavailable, ProtocolError, ResultCorrupt
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import AttemptEnd, JobRecord, StoredResult
from dask_fleet.model.states import AttemptState, RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.plugins.result_store import ResultStore
from dask_fleet.protocol.frames import Ack, Outcome

log = logging.getLogger(__name__)

_LEDGER_RETRY_S = (0.1, 2.0)

_REMEMBERED = 4_096
"""Attempts whose recorded end is remembered: an outcome whose acknowledgement was lost comes again, and is no zombie's."""


class Outcomes:
    """Records the ends of attempts."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        results: ResultStore,
        spool: Path,
        dispatcher: Dispatcher,
        changes: Changes,
        recent: RecentJobs,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._results = results
        self._spool = spool
        self._dispatcher = dispatcher
        self._changes = changes
        self._recent = recent
        self._clock = clock
        self._recording: dict[tuple[int, int], tuple[AgentHandle, asyncio.Future[bool]]] = {}
        self._following: set[tuple[int, int]] = set()
        self._recorded: OrderedDict[tuple[int, int], AttemptState] = OrderedDict()
        self.bytes_in_use = BytesInUse()
        self.stale = 0
        """Late writes refused by the fence since start."""

    async def record(self, handle: AgentHandle, outcome: Outcome) -> None:
        """Make an outcome durable, or learn that the fence refuses it; acknowledge it in both cases.

        Called twice for one attempt (an agent sends again what was not acknowledged), it records once.
        """
        key = (outcome.seq, outcome.attempt)
        again = False
        if key in self._recording:
            if key in self._following:
                return  # sent a third time while the first is being written: the second sees to the answer
            self._following.add(key)
        while (under_way := self._recording.get(key)) is not None:
            # Sent again over a new connection, or given up as lost this very moment: what is being written comes first.
            again = await asyncio.shield(under_way[1]) and under_way[0] is handle
        self._following.discard(key)
        if again or self._recorded.get(key) is outcome.state:
            handle.drop(key)  # its Hello may have listed it meanwhile
            self._dispatcher.pump()
        else:
            written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._recording[key] = (handle, written)
            try:
                await self._record(handle, outcome)
                written.set_result(True)
            finally:
                del self._recording[key]
                if not written.done():
                    written.set_result(False)
        handle.send(Ack(outcome.seq, outcome.attempt))

    async def lose(self, handle: AgentHandle, seq: int, run: int, attempt: int, message: str) -> None:
        """Record that an attempt is lost with its agent."""
        failure = Failure(cause=Cause.AGENT_LOST, message=message)
        await self.record(
            handle,
            Outcome(seq, run, attempt, AttemptState.LOST, "", self._clock.now_us(), failure=failure),
        )

    async def _record(self, handle: AgentHandle, outcome: Outcome) -> None:
        # The agent's slot is free from now on; while the outcome is written, the next run is claimed in the same commit.
        held = handle.drop((outcome.seq, outcome.attempt))
        if outcome.state is AttemptState.CANCELLED and outcome.failure is None:
            handle.window.given_back()
        elif held is not None and held.since:
            sojourn_s = self._clock.monotonic() - held.since
            handle.window.ended(held.endpoint, sojourn_s=sojourn_s, held=held.alongside, slots=handle.slots)
        job = self._dispatcher.by_seq.get(outcome.seq)
        current = (
            job is not None
            and job.run == outcome.run
            and job.attempt == outcome.attempt
            and job.state is RunState.RUNNING
            and job.agent == handle.agent_id
        )
        if not current and job is not None and job.attempt == outcome.attempt and job.agent != handle.agent_id:
            current = _same_host(job.agent, handle)  # a successor delivers what its predecessor had spooled
        if job is None or not current:
            self._dispatcher.pump()
            await self._refuse(handle, outcome)
            return
        self._dispatcher.pump()
        ended = await self._finish(job, outcome)
        if ended is None:
            await self._refuse(handle, outcome)
            return
        self._recorded[outcome.seq, outcome.attempt] = outcome.state
        if len(self._recorded) > _REMEMBERED:
            self._recorded.popitem(last=False)

    async def _finish(self, job: JobRecord, outcome: Outcome) -> JobRecord | None:
        state, failure = outcome.state, outcome.failure
        result: StoredResult | None = None
        if state is AttemptState.SUCCEEDED:
            try:
                result = await self._store(job, outcome)
            except (ResultCorrupt, ProtocolError) as exc:
                state, failure = (
                    AttemptState.LOST,
                    Failure.bounded(Cause.AGENT_LOST, f"the result did not arrive whole: {exc}"),
                )
            except OSError as exc:
                full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
                text = "the result store is full" if full else f"the result store refused the bytes: {exc.strerror}"
                state, failure = AttemptState.FAILED, Failure.bounded(Cause.RESULT_STORE_FULL, text)
            except Exception:
                log.exception("result not stored", extra={"action": "result_not_stored", "seq": job.seq})
                state, failure = AttemptState.LOST, _unforeseen("stored")
        end = self._meaning(job, outcome, state, failure, result)
        accused: Owner | None = None
        if cost_a_process(end, outcome.blame):
            accused = (job.tenant, job.opened_by or job.user)
            process = (job.agent or "", outcome.died_with or outcome.worker)
            self._dispatcher.breaker.died(process, accused, self._clock.monotonic())
        location = None if result is None else result.location
        try:
            try:
                ended = await self._write(end)
            except Exception:
                # The ledger's rules refused it, which nobody foresaw. The run must not hang on it: this attempt is given up.
                log.exception("outcome not recorded", extra={"action": "outcome_not_recorded", "seq": job.seq})
                result = None
                ended = await self._write(self._meaning(job, outcome, AttemptState.LOST, _unforeseen("recorded"), None))
        finally:
            if location is not None:
                self.bytes_in_use.release(location)
        if ended is None:
            return None
        if result is None:
            await self._drop_spooled(outcome)
        if accused is not None:  # after the write: by now all that died with it have been noted
            self._dispatcher.judge(accused)
        if ended.state is RunState.QUEUED:
            self._dispatcher.enqueue(ended)
            self._dispatcher.pump()
        else:
            self._dispatcher.untrack(ended)
            if result is not None and ended.result_expires_us is not None:
                kept = msgspec.structs.replace(result, run=ended.run, expires_us=ended.result_expires_us)
                self._recent.put(ended, kept)
        self._changes.publish(ended)
        return ended

    def _meaning(
        self,
        job: JobRecord,
        outcome: Outcome,
        state: AttemptState,
        failure: Failure | None,
        result: StoredResult | None,
    ) -> AttemptEnd:
        return after_attempt(
            job,
            attempt=outcome.attempt,
            state=state,
            worker=outcome.worker,
            failure=failure,
            result=result,
            now_us=self._clock.now_us(),
            jitter=random.random(),
            blame=outcome.blame,
        )

    async def _write(self, end: AttemptEnd) -> JobRecord | None:
        waits = 0
        while True:
            try:
                return await self._ledger.finish(end)
            except LedgerUnavailable:
                # The agent keeps the outcome until we acknowledge it, and so do we: running work survives a full disk.
                waits += 1
                log.warning(
                    "outcome waits for the ledger", extra={"action": "outcome_waits", "seq": end.seq, "tries": waits}
                )
                await asyncio.sleep(min(_LEDGER_RETRY_S[1], _LEDGER_RETRY_S[0] * 2.0 ** min(waits, 10)))

    async def _store(self, job: JobRecord, outcome: Outcome) -> StoredResult:
        location: str | None = None
        if outcome.spool is not None:
            if not _is_plain(outcome.spool):
                raise ProtocolError(f"not a name of a spool file: {outcome.spool!r}")
            location = await self._results.adopt(self._spool / outcome.spool, digest=outcome.digest, size=outcome.size)
            if not self.bytes_in_use.take(location):
                raise ResultCorrupt("its bytes had been stored for long without a result and were deleted")
        elif outcome.body is None or len(outcome.body) != outcome.size:
            raise ProtocolError("an outcome without its bytes")
        return StoredResult(
            media_type=outcome.media_type,
            digest=outcome.digest,
            size=outcome.size,
            body=outcome.body if location is None else None,
            location=location,
            json=outcome.json,
            run=job.run,
            created_us=self._clock.now_us(),
        )

    async def _refuse(self, handle: AgentHandle, outcome: Outcome) -> None:
        self.stale += 1
        log.warning(
            "late outcome refused",
            extra={
                "action": "stale_epoch",
                "agent": handle.name,
                "seq": outcome.seq,
                "run": outcome.run,
                "attempt": outcome.attempt,
                "state": str(outcome.state),
            },
        )
        await self._drop_spooled(outcome)

    async def _drop_spooled(self, outcome: Outcome) -> None:
        """Remove the bytes of an outcome that gave no result; if they were taken over before, they are no longer there."""
        if outcome.spool is not None and _is_plain(outcome.spool):
            try:
                await asyncio.to_thread((self._spool / outcome.spool).unlink, missing_ok=True)
            except OSError:
                log.warning("a result of no use stays in the spool", exc_info=True, extra={"action": "spool_kept"})


def _unforeseen(what: str) -> Failure:
    return Failure(cause=Cause.AGENT_LOST, message=f"its outcome could not be {what}: the server's log says why")


def _is_plain(name: str) -> bool:
    return "/" not in name and "\0" not in name and name not in {"", ".", ".."}


def _same_host(agent_id: str | None, handle: AgentHandle) -> bool:
    """Whether `agent_id` names an earlier process of the same agent: it held the lock of its folder, so it is dead."""
    return agent_id is not None and agent_home(agent_id) == handle.home
