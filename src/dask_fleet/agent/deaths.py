"""Deaths of worker processes: what they are called, and who may be to blame. Pure."""

from __future__ import annotations

import signal

import msgspec

from dask_fleet.agent.attempts import Attempt, ended, timeout_failure
from dask_fleet.model.failure import Blame, Cause, Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import Outcome

_NEAR_LIMIT = 0.8
"""Killed by somebody else while it had this part of its limit: it was the kernel, for want of memory."""
_TO_USE_LESS = "use less memory in the function, or run fewer worker processes with a larger --memory-limit"


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker process ended under its attempts."""

    cause: Cause
    how: str
    """Completes "the worker process …"."""
    ordered: bool = False
    """Whether it was none of its attempts' doing: nobody is charged."""
    reached_others: bool = False
    """Whether other processes died with it: its attempts were not alone, however many they are."""
    peak_bytes: int | None = None
    signal: str | None = None
    """What ended it, if that was a signal of somebody else's."""
    exit_code: int | None = None
    """What it left with, if it did."""

    def blame(self, company: int) -> Blame:
        """Return who may have caused it, where `company` attempts were in the process."""
        if self.ordered:
            return Blame.NONE
        return Blame.ALONE if company == 1 and not self.reached_others else Blame.SHARED


FOR_ANOTHER = Death(
    cause=Cause.WORKER_DIED, how="was killed because another attempt in it did not end in time", ordered=True
)
FOR_A_CLUSTER = Death(
    cause=Cause.WORKER_DIED,
    how="was killed because tasks of a Dask cluster that had left it did not end in time",
    ordered=True,
)
FOR_A_RESTART = Death(
    cause=Cause.WORKER_DIED,
    how="was killed because tasks from before a restart of their Dask cluster did not end in time",
    ordered=True,
)
RESTARTED = Death(cause=Cause.WORKER_DIED, how="was ended because a client restarted its Dask worker", ordered=True)
LEASE_OVER = Death(cause=Cause.WORKER_DIED, how="was ended with its slot lease", ordered=True)
WITH_ITS_FORKSERVER = Death(
    cause=Cause.WORKER_DIED,
    how="ended with its forkserver, which died, as did all others of it: one of the jobs in them may have killed it",
    reached_others=True,
)
WITH_ITS_GUARD = Death(
    cause=Cause.WORKER_DIED,
    how="ended with its parent process, which was killed; a function must not send signals to the parent of its process",
)
GIVEN_UP = Death(cause=Cause.AGENT_LOST, how="was killed: its agent gave up what it ran", ordered=True)
WHILE_STOPPED = Death(
    cause=Cause.STOPPED,
    how="had been stopped (by SIGSTOP or a debugger) and was replaced; call the function outside of Fleet to debug it",
)


def for_memory(peak_bytes: int, limit_bytes: int, *, descendants: int = 0) -> Death:
    """Return the death of a process that the agent kills because it comes too close to its limit, alone or together with
    so many others that it has started.
    """
    others = f" with the {descendants} processes" if descendants > 1 else " with the process" if descendants else ""
    family = f"{others} it had started" if others else ""
    how = f"was killed for its memory: it had{family} {readable(peak_bytes)} of the {readable(limit_bytes)} it may have"
    return Death(cause=Cause.MEMORY_LIMIT, how=f"{how}; {_TO_USE_LESS}", peak_bytes=peak_bytes)


def of_exit(
    code: int | None, *, last_bytes: int, peak_bytes: int, limit_bytes: int, oom_killed: bool, guarded: bool = False
) -> Death:
    """Return the death of a process that nobody here has killed.

    Parameters
    ----------
    code
        Its exit code, negative for a signal; ``None`` if its forkserver, or its guard, died before telling.
    last_bytes, peak_bytes
        Memory it had when last looked at, and the most it was seen to have.
    limit_bytes
        What it may have; 0 for no limit.
    oom_killed
        Whether the kernel has killed something of this agent's control group for want of memory since the last look.
    guarded
        Whether its parent was a guard, and no other's.
    """
    if code is None:
        return WITH_ITS_GUARD if guarded else WITH_ITS_FORKSERVER
    if code == -signal.SIGKILL and (oom_killed or (limit_bytes and last_bytes >= _NEAR_LIMIT * limit_bytes)):
        limit = f" of the {readable(limit_bytes)} it may have" if limit_bytes else ""
        how = f"was killed by the kernel for want of memory: it was seen with {readable(peak_bytes)}{limit}"
        return Death(
            cause=Cause.MEMORY_LIMIT, how=f"{how}; {_TO_USE_LESS}", peak_bytes=peak_bytes, signal=signal_name(-code)
        )
    return Death(
        cause=Cause.WORKER_DIED,
        how=describe_exit(code),
        signal=signal_name(-code) if code < 0 else None,
        exit_code=code if code >= 0 else None,
    )


def describe_exit(code: int | None) -> str:
    """Return words for how a process ended: a negative code is a signal's number, none is its forkserver's death."""
    if code is None:
        return "ended with its forkserver, which died"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal_name(-code)
    return f"was killed by {'' if name.startswith('SIG') else 'signal '}{name}"


def signal_name(number: int) -> str:
    """Return what a signal is called, ``"SIGSEGV"``; its number if it has no name, as most real-time ones."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def verdict_on_death(
    attempt: Attempt,
    worker: str,
    death: Death,
    now_us: int,
    *,
    company: int,
    last_words: str = "",
    forkserver: int = 0,
) -> Outcome:
    """Return what is reported home for an attempt whose worker process ended under it.

    What was cancelled or had timed out is just that, however its process ended. `company` counts the attempts that were in
    the process, this one too; `last_words` are what the process wrote at its end; `forkserver` is the pid of its forkserver.
    """
    if attempt.cancelled:
        return ended(attempt.start, AttemptState.CANCELLED, worker, now_us)
    if attempt.timed_out:
        timed_out = ended(attempt.start, AttemptState.FAILED, worker, now_us, timeout_failure(attempt))
        # Its process was killed for its sake, whoever else was in there: the price of each is counted.
        return msgspec.structs.replace(timed_out, blame=Blame.ALONE) if attempt.stuck else timed_out
    failure = Failure.bounded(
        death.cause,
        f"the worker process {death.how}",
        traceback=last_words,
        peak_bytes=death.peak_bytes,
        signal=death.signal,
        exit_code=death.exit_code,
    )
    lost = ended(attempt.start, AttemptState.LOST, worker, now_us, failure)
    died_with = f"forkserver-{forkserver}" if death.reached_others else ""
    return msgspec.structs.replace(lost, blame=death.blame(company), died_with=died_with)


def readable(size_bytes: int) -> str:
    """Return a size for people: ``1.5 GiB``."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}" if size_bytes < 1000 * size else f"{size_bytes / size:.0f} {unit}"
    return f"{size_bytes} bytes"
