"""Records to rows and back; the one place that knows the columns' order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import AttemptRecord, EventRecord, JobRecord, Policy, StoredResult, TokenRecord
from dask_fleet.model.leases import AgentLease, LeaseState
from dask_fleet.model.states import AttemptState, EventKind, OpenReason, RunState

Row = Sequence[Any]

INLINE_PARAMS_BYTES = 1024
"""Larger parameters get a row of their own, which changes of state do not rewrite."""

PARAMS = 6
"""Where the parameters stand in a row of ``job_by_id``; ``NULL`` if they have a row of their own."""

RESULT_RUN_BITS = 20

_RUN_STATES = {str(state): state for state in RunState}
_ATTEMPT_STATES = {str(state): state for state in AttemptState}
_REASONS = {str(reason): reason for reason in OpenReason}
_KINDS = {str(kind): kind for kind in EventKind}

_encode = msgspec.json.Encoder(order="deterministic").encode
_CAUSES = {str(cause): cause for cause in Cause}
_OLDER_WORD = {
    Cause.MEMORY_LIMIT: Cause.WORKER_DIED,
    Cause.STOPPED: Cause.WORKER_DIED,
    Cause.CLUSTER_UNAVAILABLE: Cause.SERVICE_UNAVAILABLE,
    Cause.CLUSTER_LOST: Cause.AGENT_LOST,
}
"""Causes that schema 1 did not know, and what is written for them: after a rollback the version before has to read these
rows, and takes no word that it does not know. The exact one stands beside it."""


class _StoredFailure(Failure, frozen=True, kw_only=True, omit_defaults=True):
    """A failure whose cause has an older word, which stands in its place."""

    exact: str


class _Exact(msgspec.Struct, frozen=True):
    exact: str = ""


_older_failure_of = msgspec.json.Decoder(Failure).decode
_exact_of = msgspec.json.Decoder(_Exact).decode
_tags_of = msgspec.json.Decoder(tuple[str, ...]).decode
_data_of = msgspec.json.Decoder(dict[str, object]).decode
_scopes_of = msgspec.json.Decoder(frozenset[str]).decode


def to_json(value: object) -> str:
    """Return compact JSON text."""
    return _encode(value).decode()


@lru_cache(maxsize=4096)
def _policy_text(policy: Policy) -> str:
    return to_json(policy)


@lru_cache(maxsize=4096)
def _policy_of(text: str) -> Policy:
    # A server has a handful of policies and a row for each run: decode each once, and let all records share it.
    return msgspec.json.decode(text, type=Policy)


@lru_cache(maxsize=4096)
def _who(key: str, name: str) -> str:
    return to_json({key: name})


def event_text(data: dict[str, object]) -> str | None:
    """Return an event's data as it is stored; the small ones of every call are made once a name."""
    if not data:
        return None
    if len(data) == 1:
        (key, value), = data.items()
        if type(value) is str:
            return _who(key, value)
    return to_json(data)


def tags_text(tags: tuple[str, ...]) -> str | None:
    """Return the tags as they stand in a job's row."""
    return to_json(tags) if tags else None


def tags_from(text: str | None) -> tuple[str, ...]:
    """Return the tags that stand in a job's row."""
    return _tags_of(text) if text else ()


def failure_text(failure: Failure | None) -> str | None:
    """Return a failure as it is stored."""
    if failure is None:
        return None
    older = _OLDER_WORD.get(failure.cause)
    if older is None:
        return to_json(failure)
    return to_json(_StoredFailure(**{**msgspec.structs.asdict(failure), "cause": older, "exact": str(failure.cause)}))


def failure_from(text: str | None) -> Failure | None:
    """Return a failure as it was stored, by whatever version: one whose exact cause is not known here has an older word."""
    if text is None:
        return None
    failure = _older_failure_of(text)
    exact = _CAUSES.get(_exact_of(text).exact)
    return failure if exact is None else msgspec.structs.replace(failure, cause=exact)


def job_from_row(row: Row, params: bytes | None = None) -> JobRecord:
    """Return the record of a row of ``job_by_id``; `params` are given if the row has none."""
    return JobRecord(
        seq=row[0], job_id=row[1], tenant=row[2], service=row[3], endpoint=row[4], version=row[5],
        params=row[6] if params is None else params, user=row[7], pure=row[8] == 1, created_us=row[9],
        tags=_tags_of(row[10]) if row[10] else (), run=row[11], state=_RUN_STATES[row[12]], attempt=row[13],
        agent=row[14], reason=_REASONS[row[15]], opened_by=row[16], opened_us=row[17], started_us=row[18],
        finished_us=row[19], not_before_us=row[20], priority=row[21], deadline_us=row[22], policy=_policy_of(row[23]),
        exceptions=row[24], faults=row[25], cancel_requested_by=row[26],
        failure=failure_from(row[27]), result_run=row[28], result_expires_us=row[29],
        deaths=row[30], memory_kills=row[31], losses=row[32], suspect=row[33] == 1,
    )


def row_of_new_job(job: JobRecord) -> Row:
    """Return the bindings of ``insert_job``."""
    return (
        job.seq, job.job_id, job.tenant, job.service, job.endpoint, job.version, job.user, int(job.pure), job.created_us,
        tags_text(job.tags), job.run, job.state, job.attempt, job.agent, job.reason, job.opened_by, job.opened_us,
        job.started_us, job.finished_us, job.not_before_us, job.priority, job.deadline_us, _policy_text(job.policy),
        job.exceptions, job.faults, job.cancel_requested_by, failure_text(job.failure), job.result_run,
        job.result_expires_us, None if len(job.params) > INLINE_PARAMS_BYTES else job.params,
    )


def row_of_change(before: JobRecord, job: JobRecord) -> Row:
    """Return the bindings of ``update_job``: all that can change, then the guard."""
    return (
        job.run, job.state, job.attempt, job.agent, job.reason, job.opened_by, job.opened_us, job.started_us,
        job.finished_us, job.not_before_us, job.priority, job.deadline_us, _policy_text(job.policy), job.exceptions,
        job.faults, job.cancel_requested_by, failure_text(job.failure), job.result_run, job.result_expires_us,
        before.seq, before.run, before.attempt, before.state,
    )


def row_of_guilt(job: JobRecord) -> Row:
    """Return the bindings of ``update_guilt``."""
    return (job.deaths, job.memory_kills, job.losses, int(job.suspect), job.seq)


def row_of_attempt(seq: int, attempt: AttemptRecord) -> Row:
    """Return the bindings of ``insert_attempt``."""
    return (seq, attempt.attempt, attempt.run, attempt.state, attempt.agent, attempt.worker, attempt.started_us,
            attempt.finished_us, failure_text(attempt.failure))


def attempt_from_row(row: Row) -> AttemptRecord:
    """Return the record of a row of ``attempts``."""
    return AttemptRecord(run=row[0], attempt=row[1], state=_ATTEMPT_STATES[row[2]], agent=row[3], worker=row[4],
                         started_us=row[5], finished_us=row[6], failure=failure_from(row[7]))


def running_attempt(job: JobRecord) -> AttemptRecord | None:
    """Return the attempt under way, which stands in the job's record."""
    if job.state is not RunState.RUNNING:
        return None
    return AttemptRecord(run=job.run, attempt=job.attempt, state=AttemptState.RUNNING, agent=job.agent or "",
                         started_us=job.started_us or 0)


def event_from_row(row: Row) -> EventRecord:
    """Return the record of a row of ``events``."""
    return EventRecord(event_id=row[0], run=row[1], attempt=row[2], kind=_KINDS[row[3]], at_us=row[4],
                       data=_data_of(row[5]) if row[5] else {})


def result_id(seq: int, run: int) -> int:
    """Return the key of a run's result."""
    return seq << RESULT_RUN_BITS | run


def run_of_result(key: int) -> tuple[int, int]:
    """Return ``(seq, run)`` of a result's key."""
    return key >> RESULT_RUN_BITS, key & ((1 << RESULT_RUN_BITS) - 1)


def row_of_result(seq: int, result: StoredResult) -> Row:
    """Return the bindings of ``insert_result``."""
    return (result_id(seq, result.run), result.media_type, result.digest, result.size, result.location, result.created_us,
            result.expires_us, result.body, result.json)


def result_from_row(row: Row, run: int) -> StoredResult:
    """Return the record of a row of ``result``."""
    return StoredResult(media_type=row[0], digest=row[1], size=row[2], body=row[3], location=row[4], json=row[5], run=run,
                        created_us=row[6], expires_us=row[7])


def row_of_lease(lease: AgentLease) -> Row:
    """Return the bindings of ``put_lease``."""
    return (lease.agent, lease.name, lease.pool, lease.epoch, lease.state, lease.granted_us, lease.expires_us,
            lease.ended_us)


def lease_from_row(row: Row) -> AgentLease:
    """Return the record of a row of ``lease``."""
    return AgentLease(agent=row[0], name=row[1], pool=row[2], epoch=row[3], state=LeaseState(row[4]), granted_us=row[5],
                      expires_us=row[6], ended_us=row[7])


def row_of_token(token: TokenRecord) -> Row:
    """Return the bindings of ``put_token``."""
    return (token.token_id, token.digest, token.user, token.tenant, to_json(sorted(token.scopes)), token.created_us,
            token.expires_us, token.revoked_us)


def token_from_row(row: Row) -> TokenRecord:
    """Return the record of a row of ``tokens``."""
    return TokenRecord(token_id=row[0], digest=row[1], user=row[2], tenant=row[3], scopes=_scopes_of(row[4]),
                       created_us=row[5], expires_us=row[6], revoked_us=row[7])
