"""Jobs, runs, attempts, events and results, as the ledger remembers them.

Times are UTC in whole microseconds since 1970, with ``_us`` in the name; durations are seconds with ``_s``.
"""

from __future__ import annotations

import msgspec

from dask_fleet.model.failure import Failure
from dask_fleet.model.states import AttemptState, EventKind, OpenReason, RunEvent, RunState

DEFAULT_PRIORITY = 0
MIN_PRIORITY = -100
MAX_PRIORITY = 100

LONGEST_BACKOFF_S = 60.0
"""No run waits longer than this for its next attempt."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint's jobs are run and kept; copied into each run when it is opened."""

    cache_s: float = 86_400.0
    """How long a result is served (default a day)."""
    timeout_s: float = 3_600.0
    """Longest time of one attempt; mandatory, so that nothing holds a slot for ever."""
    retries: int = 0
    """How often an attempt that raised is run again."""
    pure: bool = True
    """Whether equal requests are one job."""
    max_result_bytes: int = 2 << 30


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A request on its way into the ledger: the job it names and the run it would open."""

    job_id: str
    tenant: str
    service: str
    endpoint: str
    version: str
    params: bytes
    """Canonical JSON."""
    user: str
    policy: Policy
    priority: int = DEFAULT_PRIORITY
    deadline_us: int | None = None
    tags: tuple[str, ...] = ()
    refresh: bool = False
    """Open a run even if a result is there."""
    idempotency_key: str | None = None
    request_digest: bytes = b""
    """What the idempotency key stands for."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job with its current run: one row as routes, controller and events see it."""

    seq: int
    """The ledger's own handle: ascending in order of acceptance."""
    job_id: str
    tenant: str
    service: str
    endpoint: str
    version: str
    params: bytes
    user: str
    """Who asked first."""
    pure: bool
    created_us: int
    tags: tuple[str, ...] = ()
    run: int = 1
    state: RunState = RunState.QUEUED
    attempt: int = 0
    """Number of the last attempt of the job, over all runs; 0 before the first. The fence."""
    agent: str | None = None
    """Who holds the current attempt while running."""
    reason: OpenReason = OpenReason.POST
    opened_by: str = ""
    opened_us: int = 0
    started_us: int | None = None
    """Start of the run's latest attempt."""
    finished_us: int | None = None
    not_before_us: int = 0
    """The next attempt waits until then (back-off)."""
    priority: int = DEFAULT_PRIORITY
    deadline_us: int | None = None
    policy: Policy = Policy()
    exceptions: int = 0
    """Attempts of this run that the endpoint's ``retries`` answer for."""
    faults: int = 0
    """Attempts of this run lost to infrastructure."""
    deaths: int = 0
    """Deaths of worker processes charged to this run: it was alone in them."""
    memory_kills: int = 0
    """Of these, the ones by the memory limit."""
    losses: int = 0
    """Attempts of this run that were lost with a worker process and charged to nobody."""
    suspect: bool = False
    """It was in a worker process that died: its attempts run alone, so that the next death has one culprit."""
    cancel_requested_by: str | None = None
    failure: Failure | None = None
    """Of the run if it failed, else of its latest attempt."""
    result_run: int | None = None
    """The latest run whose result is still kept; differs from `run` while a refresh is under way."""
    result_expires_us: int | None = None


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger's answer to a request."""

    job: JobRecord
    opened: bool
    """Whether this request opened a run (else it joined one, or its result was there)."""
    claimed: bool
    """Whether attempt 1 of it was claimed in the same transaction."""


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One execution."""

    run: int
    attempt: int
    state: AttemptState
    agent: str
    worker: str = ""
    started_us: int
    finished_us: int | None = None
    failure: Failure | None = None


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a job's story."""

    event_id: int
    """Ascending over the whole ledger; the ``Last-Event-ID`` of the event stream."""
    run: int
    attempt: int
    kind: EventKind
    at_us: int
    data: dict[str, object] = {}


class StoredResult(msgspec.Struct, frozen=True, kw_only=True):
    """Where and what a result is. Bytes are opaque to the server."""

    media_type: str
    digest: str
    """``sha256`` of the bytes, in hexadecimal."""
    size: int
    body: bytes | None = None
    """The bytes, if they are small enough for the ledger."""
    location: str | None = None
    """Else the result store's name for them."""
    json: bytes | None = None
    """The JSON rendering made by the worker, where the stored form is not JSON itself and it is small."""
    run: int = 0
    created_us: int = 0
    expires_us: int = 0


class AttemptEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an attempt and what it means for the run: one guarded, fenced change."""

    seq: int
    run: int
    attempt: int
    attempt_state: AttemptState
    run_event: RunEvent
    worker: str = ""
    finished_us: int
    failure: Failure | None = None
    result: StoredResult | None = None
    """Given exactly with ``SUCCEED``."""
    not_before_us: int = 0
    """With ``REQUEUE``: back-off."""
    counts_as_exception: bool = False
    counts_as_fault: bool = False
    counts_as_death: bool = False
    counts_as_memory_kill: bool = False
    counts_as_loss: bool = False
    """Lost with a worker process, charged to nobody."""
    makes_suspect: bool = False


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What a listing asks for; all given conditions hold together."""

    tenant: str
    state: RunState | None = None
    service: str | None = None
    endpoint: str | None = None
    """Given only together with `service`."""
    user: str | None = None
    tag: str | None = None
    created_after_us: int | None = None
    created_before_us: int | None = None


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a listing, newest first."""

    jobs: list[JobRecord]
    next_before_seq: int | None
    """Where the next page begins; ``None`` at the end. A page may be short of its limit and still have a next."""


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A token as the ledger keeps it: never the token itself."""

    token_id: str
    digest: bytes
    """SHA-256 of the token (tokens carry 256 random bits, so a plain hash is enough)."""
    user: str
    tenant: str
    scopes: frozenset[str]
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None

    @property
    def ended_us(self) -> int | None:
        """When it ended, or will end by itself (UTC, microseconds); ``None`` is never."""
        if self.expires_us is None or self.revoked_us is None:
            return self.revoked_us if self.expires_us is None else self.expires_us
        return min(self.expires_us, self.revoked_us)
