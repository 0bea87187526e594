"""What each write means: pure functions from a job's record to its next one, shared by all ledgers.

A ledger reads the job, asks here, and writes the `Change` under a guard in one transaction. Nothing else sets a state.
"""

from __future__ import annotations

from msgspec.structs import replace

from dask_fleet.model.errors import Conflict, InvalidTransition
from dask_fleet.model.jobs import LONGEST_BACKOFF_S, AttemptEnd, AttemptRecord, JobRecord, NewRun, Policy, StoredResult
from dask_fleet.model.states import (
    RUN_EVENTS_OF_ATTEMPT,
    RUN_TRANSITIONS,
    EventKind,
    OpenReason,
    RunEvent,
    RunState,
)

SUPERSEDED_KEPT_US = 300 * 1_000_000
"""How long a result is kept for its readers after a refresh has given a newer one."""

IDEMPOTENCY_KEPT_US = 86_400 * 1_000_000
"""How long an idempotency key stands for its request."""

_LONGEST_BACKOFF_US = int(LONGEST_BACKOFF_S * 1_000_000)

_EVENT_OF_RUN: dict[RunEvent, EventKind] = {
    RunEvent.SUCCEED: EventKind.SUCCEEDED,
    RunEvent.FAIL: EventKind.FAILED,
    RunEvent.REQUEUE: EventKind.RETRYING,
    RunEvent.CANCEL: EventKind.CANCELLED,
}


class Draft:
    """An event to be, without its id."""

    __slots__ = ("attempt", "data", "kind")

    def __init__(self, kind: EventKind, attempt: int, data: dict[str, object]) -> None:
        self.kind = kind
        self.attempt = attempt
        self.data = data


class Change:
    """The next record of a job and what is written with it."""

    __slots__ = ("ended", "events", "guilt", "job", "result", "superseded_run")

    def __init__(
        self,
        job: JobRecord,
        events: tuple[Draft, ...],
        *,
        ended: AttemptRecord | None = None,
        result: StoredResult | None = None,
        superseded_run: int | None = None,
        guilt: bool = False,
    ) -> None:
        self.job = job
        self.events = events
        self.ended = ended
        self.result = result
        self.superseded_run = superseded_run
        self.guilt = guilt
        """Whether what deaths of worker processes mean for the run has changed."""


def opened(new: NewRun, *, seq: int, now_us: int, claim_for: str | None) -> Change:
    """Return run 1 of a job that nobody asked for before, with attempt 1 under way if `claim_for` names an agent."""
    accepted = Draft(EventKind.ACCEPTED, 0, {"by": new.user})
    if claim_for is None:
        state, attempt, started_us = RunState.QUEUED, 0, None
        events: tuple[Draft, ...] = (accepted,)
    else:
        state, attempt, started_us = RUN_TRANSITIONS.next(RunState.QUEUED, RunEvent.CLAIM), 1, now_us
        events = (accepted, Draft(EventKind.STARTED, 1, {"agent": claim_for}))
    job = JobRecord(
        seq=seq,
        job_id=new.job_id,
        tenant=new.tenant,
        service=new.service,
        endpoint=new.endpoint,
        version=new.version,
        params=new.params,
        user=new.user,
        pure=new.policy.pure,
        created_us=now_us,
        tags=tuple(dict.fromkeys(new.tags)) if new.tags else (),
        state=state,
        attempt=attempt,
        agent=claim_for,
        opened_by=new.user,
        opened_us=now_us,
        started_us=started_us,
        priority=new.priority,
        deadline_us=new.deadline_us,
        policy=new.policy,
    )
    return Change(job, events)


def asked_again(job: JobRecord, new: NewRun, *, now_us: int, claim_for: str | None) -> Change | None:
    """Return the next run that a request for a known job opens, or ``None`` if it joins or the result is there."""
    if not job.state.is_terminal:
        return None
    if not new.refresh and serves_result(job, now_us):
        return None
    reason = OpenReason.REFRESH if new.refresh else OpenReason.POST
    return _next_run(job, reason=reason, by=new.user, policy=new.policy, priority=new.priority,
                     deadline_us=new.deadline_us, now_us=now_us, claim_for=claim_for)


def serves_result(job: JobRecord, now_us: int) -> bool:
    """Whether the job's current run has given a result that is still kept."""
    return job.state is RunState.SUCCEEDED and job.result_run == job.run and (job.result_expires_us or 0) > now_us


def with_tags(job: JobRecord, tags: tuple[str, ...]) -> JobRecord:
    """Return the record with `tags` added; the same object if it has them all."""
    merged = tuple(dict.fromkeys((*job.tags, *tags)))
    return job if merged == job.tags else replace(job, tags=merged)


def retried(job: JobRecord, *, by: str, now_us: int, claim_for: str | None) -> Change | None:
    """Return the next run of an ended job, or ``None`` if its run is still under way.

    Raises
    ------
    Conflict
        If the job has succeeded.
    """
    if not job.state.is_terminal:
        return None
    if job.state is RunState.SUCCEEDED:
        raise Conflict(
            "the job has succeeded; POST its request with ?refresh=true to compute it again", job_status=str(job.state)
        )
    return _next_run(job, reason=OpenReason.RETRY, by=by, policy=job.policy, priority=job.priority, deadline_us=None,
                     now_us=now_us, claim_for=claim_for)


def _next_run(job: JobRecord, *, reason: OpenReason, by: str, policy: Policy, priority: int, deadline_us: int | None,
              now_us: int, claim_for: str | None) -> Change:
    queued = replace(
        job, run=job.run + 1, state=RunState.QUEUED, agent=None, reason=reason, opened_by=by, opened_us=now_us,
        started_us=None, finished_us=None, not_before_us=0, priority=priority, deadline_us=deadline_us, policy=policy,
        exceptions=0, faults=0, deaths=0, memory_kills=0, losses=0, suspect=_stays_suspect(job), cancel_requested_by=None,
        failure=None,
    )
    guilt = queued.suspect or job.suspect or job.deaths > 0 or job.losses > 0
    reopened = Draft(EventKind.REOPENED, job.attempt, {"by": by, "reason": reason})
    if claim_for is None or queued.suspect:  # a suspect waits until an agent has a process for it alone
        return Change(queued, (reopened,), guilt=guilt)
    claim = _claim(queued, agent=claim_for, now_us=now_us)
    return Change(claim.job, (reopened, *claim.events), guilt=guilt)


def _stays_suspect(job: JobRecord) -> bool:
    """Whether the next run of an ended job begins as a suspect: nothing has shown yet that it kills no process."""
    if job.state is RunState.FAILED:
        return job.failure is not None and job.failure.cause.is_death
    return job.suspect and job.state is not RunState.SUCCEEDED


def must_wait(not_before_us: int, *, now_us: int) -> bool:
    """Whether a back-off is still to be waited for. One that lies further off than any can be is of before the clock was set
    back, and holds nobody up.
    """
    return now_us < not_before_us <= now_us + _LONGEST_BACKOFF_US


def claimed(job: JobRecord, run: int, *, agent: str, now_us: int) -> Change | None:
    """Return the start of the next attempt, or ``None`` if the run is not current, not queued, or must still wait."""
    if job.run != run or job.state is not RunState.QUEUED or must_wait(job.not_before_us, now_us=now_us):
        return None
    return _claim(job, agent=agent, now_us=now_us)


def _claim(job: JobRecord, *, agent: str, now_us: int) -> Change:
    attempt = job.attempt + 1
    running = replace(job, state=RUN_TRANSITIONS.next(job.state, RunEvent.CLAIM), attempt=attempt, agent=agent,
                      started_us=now_us, failure=None)
    return Change(running, (Draft(EventKind.STARTED, attempt, {"agent": agent}),))


def check_end(end: AttemptEnd) -> None:
    """Refuse an end that contradicts itself, whatever the job.

    Raises
    ------
    InvalidTransition
        If the attempt's state cannot mean that for the run, or a result stands without success, is missing with it, or
        has no bytes.
    """
    if end.run_event not in RUN_EVENTS_OF_ATTEMPT.get(end.attempt_state, ()):
        raise InvalidTransition(
            f"attempt {end.attempt} of job {end.seq}: {end.attempt_state!s} cannot mean {end.run_event!s} for its run"
        )
    if (end.result is not None) != (end.run_event is RunEvent.SUCCEED):
        raise InvalidTransition(f"attempt {end.attempt} of job {end.seq}: a result belongs to a success, and only there")
    if end.result is not None and (end.result.body is None) == (end.result.location is None):
        raise InvalidTransition(f"attempt {end.attempt} of job {end.seq}: a result has a body or a location, and not both")


def ended(job: JobRecord, end: AttemptEnd, *, now_us: int) -> Change | None:
    """Return what the end of an attempt (checked by `check_end`) leads to, or ``None`` if the fence refuses it."""
    if job.run != end.run or job.attempt != end.attempt or job.state is not RunState.RUNNING:
        return None
    event = end.run_event
    if event is RunEvent.REQUEUE and job.cancel_requested_by is not None:
        event = RunEvent.CANCEL
    state = RUN_TRANSITIONS.next(job.state, event)
    attempt = AttemptRecord(
        run=end.run, attempt=end.attempt, state=end.attempt_state, agent=job.agent or "", worker=end.worker,
        started_us=job.started_us or 0, finished_us=end.finished_us, failure=end.failure,
    )
    data: dict[str, object] = {}
    if event is RunEvent.SUCCEED:
        assert end.result is not None
        expires_us = now_us + int(job.policy.cache_s * 1_000_000)
        result = replace(end.result, run=job.run, created_us=now_us, expires_us=expires_us)
        after = replace(job, state=state, agent=None, finished_us=now_us, failure=None, result_run=job.run,
                        result_expires_us=expires_us)
        return Change(after, (Draft(EventKind.SUCCEEDED, job.attempt, data),), ended=attempt, result=result,
                      superseded_run=job.result_run)
    if end.failure is not None:
        data["cause"] = end.failure.cause
        if end.failure.signal is not None:
            data["signal"] = end.failure.signal
    if event is RunEvent.REQUEUE:
        data["not_before_us"] = end.not_before_us
    if event is RunEvent.CANCEL and job.cancel_requested_by is not None:
        data["by"] = job.cancel_requested_by
    after = replace(
        job, state=state, agent=None, finished_us=now_us if state.is_terminal else None, failure=end.failure,
        not_before_us=end.not_before_us if event is RunEvent.REQUEUE else job.not_before_us,
        exceptions=job.exceptions + end.counts_as_exception, faults=job.faults + end.counts_as_fault,
    )
    guilt = end.counts_as_death or end.counts_as_loss or end.makes_suspect
    if guilt:
        data["charged"] = end.counts_as_death
        data["suspect"] = job.suspect or end.makes_suspect
        after = replace(
            after, deaths=job.deaths + end.counts_as_death, memory_kills=job.memory_kills + end.counts_as_memory_kill,
            losses=job.losses + end.counts_as_loss, suspect=job.suspect or end.makes_suspect,
        )
    return Change(after, (Draft(_EVENT_OF_RUN[event], job.attempt, data),), ended=attempt, guilt=guilt)


def cancel_requested(job: JobRecord, run: int, *, by: str, now_us: int) -> Change | None:
    """Return the cancellation of a queued run or the wish recorded at a running one.

    ``None`` if `run` is not current or has ended; a change without events if the wish was recorded before.
    """
    if job.run != run or job.state.is_terminal:
        return None
    if job.state is RunState.QUEUED:
        cancelled = replace(job, state=RUN_TRANSITIONS.next(job.state, RunEvent.CANCEL), finished_us=now_us,
                            cancel_requested_by=by)
        return Change(cancelled, (Draft(EventKind.CANCELLED, job.attempt, {"by": by}),))
    if job.cancel_requested_by is not None:
        return Change(job, ())
    return Change(replace(job, cancel_requested_by=by), (Draft(EventKind.CANCEL_REQUESTED, job.attempt, {"by": by}),))


def expired(job: JobRecord, run: int, *, now_us: int) -> Change | None:
    """Return the end of a queued run whose deadline has come, else ``None``."""
    if job.run != run or job.state is not RunState.QUEUED or job.deadline_us is None or job.deadline_us > now_us:
        return None
    after = replace(job, state=RUN_TRANSITIONS.next(job.state, RunEvent.EXPIRE), finished_us=now_us)
    return Change(after, (Draft(EventKind.EXPIRED, job.attempt, {"deadline_us": job.deadline_us}),))
