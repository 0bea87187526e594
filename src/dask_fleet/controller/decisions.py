"""What the end of an attempt means for its run. Pure: no I/O, no clock, no randomness of its own."""

from __future__ import annotations

from dask_fleet.model.failure import Blame, Cause, Failure
from dask_fleet.model.jobs import LONGEST_BACKOFF_S, AttemptEnd, JobRecord, StoredResult
from dask_fleet.model.states import AttemptState, RunEvent

INFRASTRUCTURE_RETRIES = 3
"""How often a run survives the loss of its agent, or a result store that refuses: not the function's fault, so not its
``retries``."""

DEATH_RETRIES = 1
"""How often a run is tried again after a death of its worker process that it is charged with; those by the memory limit are
counted apart, to as many."""

LOSSES_IN_COMPANY = 2
"""After so many deaths that nobody is charged with, a run gets a process of its own, whoever caused them: beside others that
have to be killed again and again it would never end."""

LOSSES = 20
"""How many deaths that nobody is charged with a run survives: each may be somebody else's fault, but not for ever."""

EXCEPTION_BACKOFF_S = (1.0, LONGEST_BACKOFF_S)
"""First and longest wait before a function that raised is called again: what it calls may need to recover."""
FAULT_BACKOFF_S = (0.05, 5.0)
"""The same after a lost worker: another one is there at once, yet a job that kills every worker must not spin."""


def backoff_s(tries: int, bounds: tuple[float, float], *, jitter: float) -> float:
    """Return how long to wait before the next attempt, in seconds.

    Exponential with "equal jitter": half of the wait is fixed, half random, so that many jobs that failed together come back
    spread out, yet none at once (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).

    Parameters
    ----------
    tries
        Attempts already charged, from 0.
    bounds
        First and longest wait.
    jitter
        A random number in [0, 1).
    """
    first, longest = bounds
    full = min(longest, first * 2.0 ** min(tries, 30))
    return full / 2 + full / 2 * jitter


def after_attempt(
    job: JobRecord,
    *,
    attempt: int,
    state: AttemptState,
    worker: str,
    failure: Failure | None,
    result: StoredResult | None,
    now_us: int,
    jitter: float,
    blame: Blame = Blame.NONE,
) -> AttemptEnd:
    """Return the change that the end of `attempt` makes to the current run of `job`.

    * A success stands, also when a cancel was asked for meanwhile: the work is done.
    * A wish to cancel turns every other end into ``cancelled``.
    * An exception is tried again as often as the endpoint's ``retries`` allow, a lost agent ``INFRASTRUCTURE_RETRIES``
      times; a time-out, invalid parameters and an unusable result never.
    * The death of a worker process is charged only to an attempt that was alone in it, and the second such death ends the
      run. If others died with it all are suspects, which run alone from then on, charged with nothing. So does what was in
      a process that had to be killed for another's sake, from the second such death on.
    * What an agent gives back is queued again and charged to nobody.
    * A retry that could only begin after the deadline is not made.
    """
    exceptions, faults, not_before_us = False, False, 0
    death, memory_kill, loss, suspect = False, False, False, False
    if state is AttemptState.SUCCEEDED:
        event = RunEvent.SUCCEED
    elif job.cancel_requested_by is not None:
        event = RunEvent.CANCEL
    elif state is AttemptState.CANCELLED:
        # Nobody of the tenant asked: the agent gave it back, unbegun or because it was told to end. Nobody is to blame.
        state, event = AttemptState.LOST, RunEvent.REQUEUE
    else:
        failure = failure or Failure(cause=Cause.AGENT_LOST, message="the attempt was given up by its agent")
        event = RunEvent.FAIL
        wait_s = 0.0
        if failure.cause.is_death:
            alone = blame is Blame.ALONE
            memory_kill = alone and failure.cause is Cause.MEMORY_LIMIT
            death, loss = alone, not alone
            suspect = blame is not Blame.NONE or job.losses + 1 >= LOSSES_IN_COMPANY
            if alone:
                used, most = (job.memory_kills if memory_kill else job.deaths - job.memory_kills), DEATH_RETRIES
            else:
                used, most = job.losses, LOSSES
            if used < most:
                event, wait_s = RunEvent.REQUEUE, backoff_s(used, FAULT_BACKOFF_S, jitter=jitter)
        elif state is AttemptState.LOST or failure.cause.is_infrastructure:
            faults = True
            if job.faults < INFRASTRUCTURE_RETRIES:
                event, wait_s = RunEvent.REQUEUE, backoff_s(job.faults, FAULT_BACKOFF_S, jitter=jitter)
        elif failure.cause is Cause.EXCEPTION:
            exceptions = True
            if job.exceptions < job.policy.retries:
                event, wait_s = RunEvent.REQUEUE, backoff_s(job.exceptions, EXCEPTION_BACKOFF_S, jitter=jitter)
        if event is RunEvent.REQUEUE:
            not_before_us = now_us + int(wait_s * 1e6)
            if job.deadline_us is not None and not_before_us >= job.deadline_us:
                event, not_before_us = RunEvent.FAIL, 0
    return AttemptEnd(
        seq=job.seq,
        run=job.run,
        attempt=attempt,
        attempt_state=state,
        run_event=event,
        worker=worker,
        finished_us=now_us,
        failure=failure,
        result=result if event is RunEvent.SUCCEED else None,
        not_before_us=not_before_us,
        counts_as_exception=exceptions,
        counts_as_fault=faults,
        counts_as_death=death,
        counts_as_memory_kill=memory_kill,
        counts_as_loss=loss,
        makes_suspect=suspect,
    )


def cost_a_process(end: AttemptEnd, blame: Blame) -> bool:
    """Return whether the attempt has, alone or with others, cost a worker process: its user answers for that.

    Those that died in it or ran past their time-out in it did; those that it was not killed for did not.
    """
    if blame is Blame.NONE or end.run_event is RunEvent.CANCEL:
        return False
    timed_out = end.failure is not None and end.failure.cause is Cause.TIMEOUT
    return end.counts_as_death or end.counts_as_loss or timed_out
