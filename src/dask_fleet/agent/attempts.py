"""What the agent decides about attempts: where they run, when they are due, what their end is called. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.cluster_frames import NeedCluster
from dask_fleet.protocol.frames import AttemptRef, Outcome, Start

AttemptKey = tuple[int, int]
"""``(seq, attempt)``."""

class Attempt:
    """An attempt that this agent holds. Times are of the monotonic clock."""

    __slots__ = ("away", "cancelled", "deadline", "kill_at", "need", "start", "stuck", "timed_out", "waits_until")

    def __init__(self, start: Start) -> None:
        self.start = start
        self.deadline = math.inf
        """End of its time; counts from when a worker process has it."""
        self.kill_at = math.inf
        """When its process is killed if it has not ended."""
        self.waits_until = math.inf
        """When it is given back to the server if no process has taken it."""
        self.timed_out = False
        self.cancelled = False
        self.stuck = False
        """Whether its process was killed because it had not ended within its grace."""
        self.need: NeedCluster | None = None
        """Its wish for a cluster, while that is unanswered."""
        self.away = False
        """Whether it has given its thread away for good, as one that only waits for a cluster's results."""

    @property
    def key(self) -> AttemptKey:
        """Its name."""
        return (self.start.seq, self.start.attempt)

    @property
    def ref(self) -> AttemptRef:
        """Its name for the server."""
        return AttemptRef(self.start.seq, self.start.run, self.start.attempt)

    def placed(self, now: float) -> None:
        """A worker process has it."""
        self.deadline = now + self.start.timeout_s

    def cancel(self, now: float, grace_s: float) -> None:
        """Somebody wants it to end. Repeating it never prolongs the grace."""
        self.cancelled = True
        self.kill_at = min(self.kill_at, now + grace_s)

    def time_out(self, now: float, grace_s: float) -> None:
        """Its time is up."""
        self.timed_out = True
        self.kill_at = min(self.kill_at, now + grace_s)

    @property
    def next_alarm(self) -> float:
        """When something must be done about it."""
        return self.kill_at if self.timed_out else min(self.deadline, self.kill_at)


class Host(Protocol):
    """What placement looks at in a worker process."""

    @property
    def load(self) -> int:
        """Threads of it that are taken."""
        ...

    def takes(self, start: Start) -> bool:
        """Whether it has a free thread, has loaded that, and serves that tenant."""
        ...


AnyHost = TypeVar("AnyHost", bound=Host)


def choose_host(hosts: Iterable[AnyHost], start: Start) -> AnyHost | None:
    """Return the least loaded worker process that can take the attempt, or ``None``."""
    best: AnyHost | None = None
    for host in hosts:
        if (best is None or host.load < best.load) and host.takes(start):
            best = host
            if host.load == 0:
                break
    return best


def due(attempts: Iterable[Attempt], now: float) -> tuple[list[Attempt], list[Attempt]]:
    """Return ``(past their time-out and not told yet, past their grace)``."""
    late: list[Attempt] = []
    stuck: list[Attempt] = []
    for attempt in attempts:
        if attempt.kill_at <= now:
            stuck.append(attempt)
        elif attempt.deadline <= now and not attempt.timed_out:
            late.append(attempt)
    return late, stuck


def verdict(attempt: Attempt, reported: Outcome) -> Outcome:
    """Return what is reported home when a worker process reports an end.

    What ended after its time-out or after a wish to cancel did not end in time, whatever the function returned.
    """
    if attempt.cancelled:
        return _without_result(reported, AttemptState.CANCELLED, None)
    if attempt.timed_out:
        return _without_result(reported, AttemptState.FAILED, timeout_failure(attempt))
    return reported


def ended(start: Start, state: AttemptState, worker: str, now_us: int, failure: Failure | None = None) -> Outcome:
    """Return an outcome without a result."""
    return Outcome(start.seq, start.run, start.attempt, state, worker, now_us, failure=failure)


def common_versions(loaded: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the services that all have loaded at the same version."""
    if not loaded:
        return {}
    first, *others = loaded
    return {name: version for name, version in first.items() if all(o.get(name) == version for o in others)}


def timeout_failure(attempt: Attempt) -> Failure:
    """Return what is told of an attempt that ran past its time-out."""
    return Failure.bounded(
        Cause.TIMEOUT,
        f"the attempt ran past its time-out of {attempt.start.timeout_s:g} s; raise the endpoint's timeout or let the "
        "function ask dask_fleet.cancelled() and return early",
    )


def _without_result(outcome: Outcome, state: AttemptState, failure: Failure | None) -> Outcome:
    return msgspec.structs.replace(
        outcome, state=state, failure=failure, media_type="", digest="", size=0, body=None, spool=None, json=None
    )
