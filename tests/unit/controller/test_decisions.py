"""What the end of an attempt means: every cause, with retries left and without."""

from __future__ import annotations

import msgspec
import pytest

from dask_fleet.controller.decisions import (
    EXCEPTION_BACKOFF_S,
    FAULT_BACKOFF_S,
    INFRASTRUCTURE_RETRIES,
    LOSSES,
    after_attempt,
    backoff_s,
    cost_a_process,
)
from dask_fleet.model.failure import Blame, Cause, Failure
from dask_fleet.model.jobs import AttemptEnd, JobRecord, Policy, StoredResult
from dask_fleet.model.states import RUN_EVENTS_OF_ATTEMPT, AttemptState, RunEvent, RunState

NOW = 1_000_000_000
JOB = JobRecord(
    seq=7,
    job_id="a" * 32,
    tenant="default",
    service="s",
    endpoint="e",
    version="v",
    params=b"{}",
    user="ada",
    pure=True,
    created_us=1,
    state=RunState.RUNNING,
    attempt=3,
    policy=Policy(retries=2),
)
RESULT = StoredResult(media_type="application/json", digest="d", size=1, body=b"1")


def ended(
    job: JobRecord,
    state: AttemptState,
    cause: Cause | None = None,
    *,
    result: StoredResult | None = None,
    blame: Blame = Blame.NONE,
) -> AttemptEnd:
    failure = Failure(cause=cause, message="m") if cause else None
    end = after_attempt(
        job, attempt=3, state=state, worker="w", failure=failure, result=result, now_us=NOW, jitter=0.5,
        blame=blame,
    )
    assert (end.seq, end.run, end.attempt, end.finished_us) == (7, 1, 3, NOW)
    assert end.run_event in RUN_EVENTS_OF_ATTEMPT[end.attempt_state]
    return end


def test_a_success_succeeds_with_its_result() -> None:
    end = ended(JOB, AttemptState.SUCCEEDED, result=RESULT)
    assert (end.run_event, end.result) == (RunEvent.SUCCEED, RESULT)


def test_a_success_stands_although_a_cancel_was_asked_for() -> None:
    end = ended(msgspec.structs.replace(JOB, cancel_requested_by="bob"), AttemptState.SUCCEEDED, result=RESULT)
    assert end.run_event is RunEvent.SUCCEED


@pytest.mark.parametrize(("used", "event"), [(0, RunEvent.REQUEUE), (1, RunEvent.REQUEUE), (2, RunEvent.FAIL)])
def test_an_exception_is_tried_again_as_often_as_the_endpoint_says(used: int, event: RunEvent) -> None:
    end = ended(msgspec.structs.replace(JOB, exceptions=used), AttemptState.FAILED, Cause.EXCEPTION)
    assert end.run_event is event
    assert (end.counts_as_exception, end.counts_as_fault) == (True, False)
    assert (end.not_before_us > NOW) == (event is RunEvent.REQUEUE)


DEATHS = [cause for cause in Cause if cause.is_death]


@pytest.mark.parametrize("used", range(INFRASTRUCTURE_RETRIES + 1))
def test_a_lost_agent_is_no_fault_of_the_function(used: int) -> None:
    job = msgspec.structs.replace(JOB, faults=used, policy=Policy(retries=0))
    end = ended(job, AttemptState.LOST, Cause.AGENT_LOST)
    assert end.run_event is (RunEvent.REQUEUE if used < INFRASTRUCTURE_RETRIES else RunEvent.FAIL)
    assert (end.counts_as_exception, end.counts_as_fault) == (False, True)


def charges(end: AttemptEnd) -> tuple[bool, bool, bool]:
    assert (end.counts_as_exception, end.counts_as_fault) == (False, False)
    return end.counts_as_death, end.counts_as_memory_kill, end.counts_as_loss


@pytest.mark.parametrize("cause", DEATHS)
@pytest.mark.parametrize("blame", [Blame.NONE, Blame.SHARED])
def test_a_death_shared_or_of_somebody_else_is_charged_to_nobody(cause: Cause, blame: Blame) -> None:
    for losses in range(LOSSES + 1):
        end = ended(msgspec.structs.replace(JOB, losses=losses, deaths=1), AttemptState.LOST, cause, blame=blame)
        assert charges(end) == (False, False, True)
        # Hit twice by what others did, it gets a process of its own: else it would be hit until its losses are used up.
        assert end.makes_suspect == (blame is Blame.SHARED or losses >= 1)
        assert end.run_event is (RunEvent.REQUEUE if losses < LOSSES else RunEvent.FAIL)  # but not for ever
        assert (end.not_before_us > NOW) == (losses < LOSSES)


@pytest.mark.parametrize(
    ("cause", "deaths", "memory_kills", "event"),
    [
        (Cause.WORKER_DIED, 0, 0, RunEvent.REQUEUE),
        (Cause.WORKER_DIED, 1, 0, RunEvent.FAIL),
        (Cause.WORKER_DIED, 1, 1, RunEvent.REQUEUE),
        (Cause.STOPPED, 1, 0, RunEvent.FAIL),
        (Cause.MEMORY_LIMIT, 0, 0, RunEvent.REQUEUE),
        (Cause.MEMORY_LIMIT, 1, 0, RunEvent.REQUEUE),
        (Cause.MEMORY_LIMIT, 1, 1, RunEvent.FAIL),
    ],
)
def test_the_second_death_that_is_charged_ends_the_run(
    cause: Cause, deaths: int, memory_kills: int, event: RunEvent
) -> None:
    job = msgspec.structs.replace(JOB, deaths=deaths, memory_kills=memory_kills, losses=LOSSES, policy=Policy(retries=9))
    end = ended(job, AttemptState.LOST, cause, blame=Blame.ALONE)
    assert charges(end) == (True, cause is Cause.MEMORY_LIMIT, False)
    assert (end.run_event, end.makes_suspect) == (event, True)
    assert end.failure is not None
    assert end.failure.cause is cause


@pytest.mark.parametrize(
    ("state", "cause", "blame", "counts"),
    [
        (AttemptState.LOST, Cause.WORKER_DIED, Blame.ALONE, True),
        (AttemptState.LOST, Cause.WORKER_DIED, Blame.SHARED, True),
        (AttemptState.LOST, Cause.WORKER_DIED, Blame.NONE, False),  # hit by another's time-out, however often
        (AttemptState.FAILED, Cause.TIMEOUT, Blame.ALONE, True),  # it did not listen, and its process was killed
        (AttemptState.FAILED, Cause.TIMEOUT, Blame.NONE, False),  # it ended by itself
        (AttemptState.FAILED, Cause.EXCEPTION, Blame.NONE, False),
        (AttemptState.LOST, Cause.AGENT_LOST, Blame.NONE, False),
    ],
)
def test_a_user_answers_for_the_processes_that_attempts_have_cost(
    state: AttemptState, cause: Cause, blame: Blame, *, counts: bool
) -> None:
    for losses in (0, LOSSES):
        job = msgspec.structs.replace(JOB, losses=losses)
        assert cost_a_process(ended(job, state, cause, blame=blame), blame) is counts
        unwanted = msgspec.structs.replace(job, cancel_requested_by="bob")
        assert not cost_a_process(ended(unwanted, state, cause, blame=blame), blame)


def test_a_full_result_store_is_tried_again() -> None:
    end = ended(JOB, AttemptState.FAILED, Cause.RESULT_STORE_FULL)
    assert end.run_event is RunEvent.REQUEUE
    assert end.counts_as_fault


@pytest.mark.parametrize(
    "cause",
    [
        Cause.TIMEOUT,
        Cause.INVALID_PARAMETERS,
        Cause.RESULT_NOT_SERIALIZABLE,
        Cause.RESULT_TOO_LARGE,
        Cause.SERVICE_UNAVAILABLE,
    ],
)
def test_what_would_happen_again_is_not_tried_again(cause: Cause) -> None:
    assert ended(JOB, AttemptState.FAILED, cause).run_event is RunEvent.FAIL


@pytest.mark.parametrize("state", [AttemptState.FAILED, AttemptState.LOST, AttemptState.CANCELLED])
def test_a_wish_to_cancel_turns_every_other_end_into_cancelled(state: AttemptState) -> None:
    job = msgspec.structs.replace(JOB, cancel_requested_by="bob")
    assert ended(job, state, Cause.EXCEPTION).run_event is RunEvent.CANCEL


def test_an_attempt_given_back_by_its_agent_is_run_again_and_charged_to_nobody() -> None:
    end = ended(msgspec.structs.replace(JOB, faults=INFRASTRUCTURE_RETRIES), AttemptState.CANCELLED)
    assert (end.attempt_state, end.run_event) == (AttemptState.LOST, RunEvent.REQUEUE)
    assert (end.counts_as_exception, end.counts_as_fault, end.not_before_us) == (False, False, 0)


def test_no_retry_begins_after_the_deadline() -> None:
    job = msgspec.structs.replace(JOB, deadline_us=NOW + 1000)
    end = ended(job, AttemptState.FAILED, Cause.EXCEPTION)
    assert (end.run_event, end.not_before_us) == (RunEvent.FAIL, 0)


@pytest.mark.parametrize("bounds", [EXCEPTION_BACKOFF_S, FAULT_BACKOFF_S])
def test_backoff_grows_and_stays_within_its_bounds(bounds: tuple[float, float]) -> None:
    first, longest = bounds
    waits = [backoff_s(tries, bounds, jitter=0.999) for tries in range(40)]
    assert waits == sorted(waits)
    assert waits[-1] <= longest
    assert backoff_s(0, bounds, jitter=0.0) == first / 2
