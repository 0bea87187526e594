"""The life of a run and of an attempt: states, events, and the only tables that say which leads where.

::

                 CLAIM                SUCCEED
      queued ───────────▶ running ───────────────▶ succeeded
        │ ▲                │ │ │       FAIL
        │ └────────────────┘ │ └─────────────────▶ failed
        │      REQUEUE       │ CANCEL
        │                    └───────────────────▶ cancelled
        │ CANCEL / EXPIRE / FAIL
        └────────────────────────────────────────▶ cancelled / expired / failed

A run has exactly one outcome: no event leads out of a terminal state. A job that is asked for again gets its next run.
"""

from __future__ import annotations

from enum import StrEnum

from dask_fleet.model.transitions import Transitions


class RunState(StrEnum):
    """Where a run stands. The word is the same in the API, the SDK, the CLI and the database."""

    QUEUED = "queued"
    """Accepted and on disk; waits for a slot, or for its next attempt."""
    RUNNING = "running"
    """One attempt is under way; its number is the fence of every write."""
    SUCCEEDED = "succeeded"
    """The result is kept under the job's id."""
    FAILED = "failed"
    """The failure says why; never served to a later caller as if it were a result."""
    CANCELLED = "cancelled"
    """A user of the tenant ended it; the event records who."""
    EXPIRED = "expired"
    """Its deadline passed before it ran."""

    @property
    def is_terminal(self) -> bool:
        """Whether the run has its outcome."""
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED})


class RunEvent(StrEnum):
    """What can happen to a run."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    REQUEUE = "requeue"
    CANCEL = "cancel"
    EXPIRE = "expire"


RUN_TRANSITIONS = Transitions(
    "run",
    {
        (RunState.QUEUED, RunEvent.CLAIM): RunState.RUNNING,
        (RunState.QUEUED, RunEvent.CANCEL): RunState.CANCELLED,
        (RunState.QUEUED, RunEvent.EXPIRE): RunState.EXPIRED,
        (RunState.QUEUED, RunEvent.FAIL): RunState.FAILED,
        (RunState.RUNNING, RunEvent.SUCCEED): RunState.SUCCEEDED,
        (RunState.RUNNING, RunEvent.FAIL): RunState.FAILED,
        (RunState.RUNNING, RunEvent.REQUEUE): RunState.QUEUED,
        (RunState.RUNNING, RunEvent.CANCEL): RunState.CANCELLED,
    },
)


class AttemptState(StrEnum):
    """Where one execution stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The function raised, ran past its time-out, or returned what cannot be kept."""
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its worker process, agent or host went away; nobody knows how far it came."""

    @property
    def is_terminal(self) -> bool:
        """Whether the attempt has ended."""
        return self is not AttemptState.RUNNING


ATTEMPT_TRANSITIONS: frozenset[tuple[AttemptState, AttemptState]] = frozenset(
    (AttemptState.RUNNING, end) for end in AttemptState if end is not AttemptState.RUNNING
)

RUN_EVENTS_OF_ATTEMPT: dict[AttemptState, frozenset[RunEvent]] = {
    AttemptState.SUCCEEDED: frozenset({RunEvent.SUCCEED}),
    AttemptState.FAILED: frozenset({RunEvent.FAIL, RunEvent.REQUEUE, RunEvent.CANCEL}),
    AttemptState.CANCELLED: frozenset({RunEvent.CANCEL}),
    AttemptState.LOST: frozenset({RunEvent.FAIL, RunEvent.REQUEUE, RunEvent.CANCEL}),
}
"""What the end of an attempt may mean for its run; the controller chooses, the ledger checks."""


class OpenReason(StrEnum):
    """Why a run was opened."""

    POST = "post"
    RETRY = "retry"
    REFRESH = "refresh"


class EventKind(StrEnum):
    """What an event of the ledger says, in the past tense."""

    ACCEPTED = "accepted"
    REOPENED = "reopened"
    STARTED = "started"
    RETRYING = "retrying"
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
