"""The writes of the SQLite ledger, each to be called inside a transaction, in the writer's thread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from dask_fleet.ledger import changes, rows, statements
from dask_fleet.ledger.changes import Change
from dask_fleet.model.errors import FleetError, IdempotencyMismatch, InternalError, NotFound
from dask_fleet.model.jobs import Accepted, AttemptEnd, JobRecord, NewRun, TokenRecord
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock

_SQL = {**statements.load("reads"), **statements.load("writes")}
_JOB_BY_ID = _SQL["job_by_id"]
_JOB_BY_SEQ = _SQL["job_by_seq"]
_INSERT_JOB = _SQL["insert_job"]
_UPDATE_JOB = _SQL["update_job"]
_INSERT_EVENT = _SQL["insert_event"]
_INSERT_TWO_EVENTS = _SQL["insert_two_events"]
_INSERT_ATTEMPT = _SQL["insert_attempt"]
_INSERT_RESULT = _SQL["insert_result"]

EVENT_IDS_RESERVED = 100_000
"""Event ids are counted in memory and reserved on disk in blocks, so that they ascend over restarts without an index."""

_MOST_EVENTS_A_BATCH = 4_000

_ACCEPTS_A_STEP = 50
"""Requests of many that are accepted in one turn of the loop: about 2 ms."""

_MOST_RUNNING = 4_096
"""Running jobs whose rows are kept at hand."""


class Writes:
    """Reads, decides (`changes`), writes. Nothing here begins or ends a transaction."""

    def __init__(self, connection: Any, clock: Clock) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._changes = connection.changes
        self._clock = clock
        self.now_us = 0
        # What was written last of running jobs, so that their end need not read it back. All writes pass through here.
        self._running: dict[int, JobRecord] = {}
        last_seq, last_created_us = self._execute(_SQL["last_job"]).fetchone() or (0, 0)
        self._last_now_us: int = last_created_us
        # Handles of purged jobs are not given again: an agent may still hold an outcome in a handle's name.
        self._next_seq = max(last_seq, int(self._meta("last_seq_purged") or 0)) + 1
        self._next_event = int(self._meta("event_ids_reserved") or 0) + 1
        self._events_reserved = 0

    @property
    def last_seq(self) -> int:
        """The highest handle given so far."""
        return self._next_seq - 1

    # ------------------------------------------------------------------ the transaction around

    def begin(self) -> None:
        """A transaction has begun."""
        self.now_us = now_us = self._clock.now_us()
        if now_us < self._last_now_us:
            self._execute(_SQL["insert_clock_step"], (self._next_seq,))
        if self._next_event + _MOST_EVENTS_A_BATCH > self._events_reserved:
            self._events_reserved = self._next_event + EVENT_IDS_RESERVED
            self._execute(_SQL["set_meta"], ("event_ids_reserved", str(self._events_reserved)))

    def committed(self) -> None:
        """It is durable."""
        self._last_now_us = self.now_us

    def rolled_back(self) -> None:
        """It never was."""
        self._running.clear()
        self._events_reserved = 0

    # ------------------------------------------------------------------ requests

    def accept(self, new: NewRun, claim_for: str | None) -> Accepted:
        """See `Ledger.accept`."""
        key = new.idempotency_key
        if key is not None:
            job = self._idempotent(new, key)
            if job is not None:
                return Accepted(job=job, opened=False, claimed=False)
        now_us = self.now_us
        seq = self._next_seq
        change: Change | None = changes.opened(new, seq=seq, now_us=now_us, claim_for=claim_for)
        assert change is not None
        job = change.job
        self._execute(_INSERT_JOB, rows.row_of_new_job(job))
        if self._changes() == 1:
            self._next_seq = seq + 1
            if len(job.params) > rows.INLINE_PARAMS_BYTES:
                self._execute(_SQL["insert_large_params"], (seq, job.params))
            for tag in job.tags:
                self._execute(_SQL["insert_tag"], (job.tenant, tag, seq))
            self._write_events(change)
            self._keep_at_hand(job)
        else:
            known = self._by_id(new.job_id)
            if known is None:
                raise InternalError(f"job {new.job_id} is there and not there")
            known = self._tag(known, new.tags)
            change = changes.asked_again(known, new, now_us=now_us, claim_for=claim_for)
            job = known if change is None else self._open_next(known, change)
        if key is not None:
            self._execute(_SQL["keep_idempotent_request"],
                          (new.tenant, new.user, key, new.request_digest, job.seq, now_us))
        opened = change is not None
        return Accepted(job=job, opened=opened, claimed=opened and job.state is RunState.RUNNING)

    def accept_many(self, news: Sequence[NewRun]) -> Generator[None, None, list[Accepted | FleetError]]:
        """See `Ledger.accept_many`; lets go after every few requests."""
        answers: list[Accepted | FleetError] = []
        for count, new in enumerate(news, 1):
            try:
                answers.append(self.accept(new, None))
            except IdempotencyMismatch as exc:  # found before anything was written for it
                answers.append(exc)
            if count % _ACCEPTS_A_STEP == 0:
                yield
        return answers

    def reopen(self, seq: int, by: str, claim_for: str | None) -> Accepted:
        """See `Ledger.reopen`."""
        known = self._by_seq(seq)
        if known is None:
            raise NotFound("no such job")
        change = changes.retried(known, by=by, now_us=self.now_us, claim_for=claim_for)
        if change is None:
            return Accepted(job=known, opened=False, claimed=False)
        job = self._open_next(known, change)
        return Accepted(job=job, opened=True, claimed=job.state is RunState.RUNNING)

    def request_cancel(self, seq: int, run: int, by: str) -> JobRecord | None:
        """See `Ledger.request_cancel`."""
        job = self._by_seq(seq)
        if job is None:
            return None
        return self._apply(job, changes.cancel_requested(job, run, by=by, now_us=self.now_us))

    # ------------------------------------------------------------------ attempts

    def claim(self, seq: int, run: int, agent: str) -> JobRecord | None:
        """See `Ledger.claim`."""
        job = self._by_seq(seq)
        if job is None:
            return None
        return self._apply(job, changes.claimed(job, run, agent=agent, now_us=self.now_us))

    def finish(self, end: AttemptEnd) -> JobRecord | None:
        """See `Ledger.finish`."""
        changes.check_end(end)
        job = self._by_seq(end.seq)
        if job is None:
            return None
        return self._apply(job, changes.ended(job, end, now_us=self.now_us))

    def expire(self, seq: int, run: int) -> JobRecord | None:
        """See `Ledger.expire`."""
        job = self._by_seq(seq)
        if job is None:
            return None
        return self._apply(job, changes.expired(job, run, now_us=self.now_us))

    # ------------------------------------------------------------------ tokens

    def put_token(self, token: TokenRecord) -> None:
        """See `Ledger.put_token`."""
        self._execute(_SQL["put_token"], rows.row_of_token(token))

    def forget_tokens(self, token_ids: tuple[str, ...], ended_by_us: int) -> int:
        """See `Ledger.forget_tokens`."""
        gone = 0
        for token_id in token_ids:
            self._execute(_SQL["forget_token"], (token_id, ended_by_us, ended_by_us))
            gone += self._changes()
        return gone

    def revoke_token(self, token_id: str, at_us: int) -> TokenRecord | None:
        """See `Ledger.revoke_token`."""
        self._execute(_SQL["revoke_token"], (at_us, token_id))
        row = self._execute(_SQL["token"], (token_id,)).fetchone()
        return None if row is None else rows.token_from_row(row)

    # ------------------------------------------------------------------ inside

    def _apply(self, before: JobRecord, change: Change | None) -> JobRecord | None:
        if change is None:
            return None
        if change.job is before:
            return before
        job = change.job
        self._execute(_UPDATE_JOB, rows.row_of_change(before, job))
        if self._changes() != 1:
            raise InternalError(f"the guard of job {before.seq} refused what was read in the same transaction")
        if change.guilt:
            self._execute(_SQL["update_guilt"], rows.row_of_guilt(job))
        self._write_events(change)
        self._keep_at_hand(job)
        if change.ended is not None:
            self._execute(_INSERT_ATTEMPT, rows.row_of_attempt(job.seq, change.ended))
        if change.result is not None:
            self._execute(_INSERT_RESULT, rows.row_of_result(job.seq, change.result))
            if change.superseded_run is not None:
                self._execute(_SQL["supersede_result"], (self.now_us + changes.SUPERSEDED_KEPT_US,
                                                         rows.result_id(job.seq, change.superseded_run)))
        return job

    def _open_next(self, before: JobRecord, change: Change) -> JobRecord:
        self._execute(_SQL["file_run"], (before.seq,))
        job = self._apply(before, change)
        assert job is not None
        return job

    def _write_events(self, change: Change) -> None:
        job, events, at_us, event_id = change.job, change.events, self.now_us, self._next_event
        if len(events) == 2:
            one, two = events
            self._execute(_INSERT_TWO_EVENTS, (
                job.seq, event_id, job.run, one.attempt, one.kind, at_us, rows.event_text(one.data),
                job.seq, event_id + 1, job.run, two.attempt, two.kind, at_us, rows.event_text(two.data)))
            self._next_event = event_id + 2
            return
        for draft in events:
            self._execute(_INSERT_EVENT, (job.seq, self._next_event, job.run, draft.attempt, draft.kind, at_us,
                                          rows.event_text(draft.data)))
            self._next_event += 1

    def next_event_id(self) -> int:
        """Return an id for an event that is written in this transaction."""
        event_id = self._next_event
        self._next_event = event_id + 1
        return event_id

    def _idempotent(self, new: NewRun, key: str) -> JobRecord | None:
        row = self._execute(_SQL["idempotent_request"], (new.tenant, new.user, key)).fetchone()
        if row is None:
            return None
        digest, seq = row
        job = self._by_seq(seq)
        if job is None:  # the job was purged: the key stands for nothing any more
            return None
        if digest != new.request_digest:
            raise IdempotencyMismatch("this Idempotency-Key was used with another request; use a fresh key for each request")
        return job

    def _tag(self, job: JobRecord, tags: tuple[str, ...]) -> JobRecord:
        if not tags:
            return job
        tagged = changes.with_tags(job, tags)
        if tagged is not job:
            self._keep_at_hand(tagged)
            self._execute(_SQL["set_tags"], (rows.tags_text(tagged.tags), job.seq))
            for tag in tagged.tags[len(job.tags):]:
                self._execute(_SQL["insert_tag"], (job.tenant, tag, job.seq))
        return tagged

    def _keep_at_hand(self, job: JobRecord) -> None:
        if job.state is RunState.RUNNING:
            if len(self._running) >= _MOST_RUNNING:
                self._running.clear()
            self._running[job.seq] = job
        else:
            self._running.pop(job.seq, None)

    def _by_seq(self, seq: int) -> JobRecord | None:
        job = self._running.get(seq)
        return job if job is not None else self._job(self._execute(_JOB_BY_SEQ, (seq,)).fetchone())

    def _by_id(self, job_id: str) -> JobRecord | None:
        return self._job(self._execute(_JOB_BY_ID, (job_id,)).fetchone())

    def _job(self, row: rows.Row | None) -> JobRecord | None:
        if row is None:
            return None
        if row[rows.PARAMS] is not None:
            return rows.job_from_row(row)
        (params,) = self._execute(_SQL["large_params"], (row[0],)).fetchone()
        return rows.job_from_row(row, params)

    def _meta(self, key: str) -> str | None:
        row = self._execute(_SQL["meta"], (key,)).fetchone()
        return None if row is None else row[0]
