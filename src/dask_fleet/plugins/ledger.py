"""The ledger port: the durable record of jobs, runs, attempts, events and tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dask_fleet.model.cluster_states import SlotLeaseEvent
from dask_fleet.model.clusters import ClusterChange, ClusterEventRecord, ClusterRecord, ClusterSpec, NewCluster, SlotLease
from dask_fleet.model.errors import FleetError
from dask_fleet.model.jobs import (
    Accepted,
    AttemptEnd,
    AttemptRecord,
    EventRecord,
    JobFilter,
    JobPage,
    JobRecord,
    NewRun,
    StoredResult,
    TokenRecord,
)
from dask_fleet.model.leases import AgentLease, LeaseEvent

MAX_ACCEPT_MANY = 500
"""Requests in one transaction: a larger one would hold up others for longer than anybody should notice."""


MAX_CLUSTER_EVENTS = 10_000
"""Lines of one cluster's story that are told: the first ones."""


def check_many(news: Sequence[NewRun]) -> None:
    """Refuse more requests than one transaction takes.

    Raises
    ------
    ValueError
        If there are more than `MAX_ACCEPT_MANY`.
    """
    if len(news) > MAX_ACCEPT_MANY:
        raise ValueError(f"accept_many takes at most {MAX_ACCEPT_MANY} requests, not {len(news)}")


class Ledger(ABC):
    """Remembers every accepted request.

    Every write is one transaction that holds the guarded row change *and* its event; when the awaitable returns, the
    change is durable (survives ``kill -9`` and power loss). A write that its guard refuses changes nothing and says so by
    its return value, never by silence. Cancelling a caller that awaits a write does not undo the write. Many writes that
    are awaited at once may share a transaction (group commit), but one that raises takes none of the others with it.

    If the medium refuses (disk full, I/O error), writes raise `LedgerUnavailable`, having changed nothing, and reads go on.

    One conformance suite, ``dask_fleet.testing.ledger_conformance``, holds every implementation to this.
    """

    # ------------------------------------------------------------------ life

    @abstractmethod
    async def open(self) -> None:
        """Migrate if needed and become the one owner.

        Raises
        ------
        LedgerInUse
            If another process owns it.
        LedgerTooNew
            If a newer Fleet wrote it in a way that this one cannot go on with.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and let go. Twice is harmless."""

    @property
    @abstractmethod
    def ledger_id(self) -> str:
        """A random id made with the ledger: tells an agent's spooled outcomes whose they are. Valid after `open`."""

    @property
    def refusing(self) -> str | None:
        """Why the medium refused the last write, in words for an operator; ``None`` if it did not."""
        return None

    # ------------------------------------------------------------------ writes

    @abstractmethod
    async def accept(self, new: NewRun, *, claim_for: str | None = None) -> Accepted:
        """Record a request, or find that it is known: atomically, so that equal requests open one run.

        * Unknown id: job and run 1 (``POST``) are opened, event ``accepted``.
        * Known, current run queued or running: joined; nothing changes (``refresh`` joins as well).
        * Known, current run succeeded, its result kept and unexpired, and not `new.refresh`: nothing changes.
        * Else (failed, cancelled, expired, result gone, or ``refresh``): the next run is opened, with `new`'s user, policy,
          priority and deadline; event ``reopened``; reason ``REFRESH`` if asked so, else ``POST``.

        Tags are added to the job's. With an idempotency key known for this tenant and user: if it stands for the same
        ``request_digest``, that key's job is returned and nothing is opened; else `IdempotencyMismatch` is raised.

        If a run was opened and `claim_for` names an agent, attempt ``job.attempt + 1`` is claimed for it in the same
        transaction (state ``running``, event ``started``); but not that of a suspect, which needs a process for itself.
        """

    @abstractmethod
    async def accept_many(self, news: Sequence[NewRun]) -> list[Accepted | FleetError]:
        """Do `accept` for each of at most `MAX_ACCEPT_MANY` requests, in order, in one transaction of their own, without
        claiming; the answer has one entry a request.

        What is wrong with one request (`IdempotencyMismatch`) is its entry and changes nothing for the others; what concerns
        the medium raises, and then nothing was accepted. Equal requests within the list are one job.

        Raises
        ------
        ValueError
            If there are more.
        """

    @abstractmethod
    async def reopen(self, seq: int, *, by: str, claim_for: str | None = None) -> Accepted:
        """Open the next run (reason ``RETRY``) of a failed, cancelled or expired job, with its policy, priority and params.

        A queued or running job is joined; a succeeded one raises `Conflict`. Its deadline is not carried over.
        """

    @abstractmethod
    async def claim(self, seq: int, run: int, *, agent: str) -> JobRecord | None:
        """Give the next attempt of a queued run to `agent`; event ``started``.

        Guards: `run` is current, queued, and its ``not_before_us`` has passed (or lies further off than
        `LONGEST_BACKOFF_S`: then the clock was set back, which must hold up nobody). The attempt's number is the job's last
        plus one. Returns the record with its new ``attempt``, or ``None`` if a guard refused.
        """

    @abstractmethod
    async def finish(self, end: AttemptEnd) -> JobRecord | None:
        """Record the end of an attempt and what it means for the run, with its event.

        Guards: `end.run` is current and running and `end.attempt` is its current attempt. The change of the run goes through
        ``RUN_TRANSITIONS``, and ``RUN_EVENTS_OF_ATTEMPT`` must allow it. With ``SUCCEED`` the result is stored, its
        ``expires_us`` set from the run's policy. With ``REQUEUE`` counters and ``not_before_us`` are set, event
        ``retrying``. A run whose cancel was requested cannot be requeued: ``REQUEUE`` becomes ``CANCEL``.

        Returns the new record, or ``None`` if the fence refused (a zombie's late write).
        """

    @abstractmethod
    async def request_cancel(self, seq: int, run: int, *, by: str) -> JobRecord | None:
        """Cancel a run: a queued one at once (event ``cancelled``), of a running one the wish is recorded
        (``cancel_requested_by``, event ``cancel_requested``) for the controller to carry out.

        Repeating it changes nothing. Returns the record after it, or ``None`` if `run` is not current or already ended.
        """

    @abstractmethod
    async def expire(self, seq: int, run: int) -> JobRecord | None:
        """End a queued run whose deadline has passed (event ``expired``); ``None`` if a guard refused."""

    # ------------------------------------------------------------------ leases of agents

    @abstractmethod
    async def grant_lease(self, agent: str, *, name: str, pool: str) -> AgentLease:
        """Give an agent a lease of `LEASE_S` on the lease clock, or go on with the one it holds, prolonged to as much."""

    @abstractmethod
    async def renew_leases(self, leases: Sequence[tuple[str, int]]) -> list[str]:
        """Prolong held leases, given as ``(agent, epoch)``, to `LEASE_S` from now; return the agents whose lease has ended
        or has another epoch: they need a new one. One transaction, which also keeps the lease clock: it goes on for
        `AHEAD_S` after it.
        """

    @abstractmethod
    async def end_lease(self, agent: str, epoch: int, event: LeaseEvent) -> bool:
        """Let a held lease lapse or release it; whether it was held. ``LAPSE`` is refused before its time has come."""

    @abstractmethod
    async def leases(self) -> list[AgentLease]:
        """Return the leases that are held, and those that ended within the last day, by agent."""

    @abstractmethod
    def lease_now_us(self) -> int:
        """Return the lease clock, in microseconds.

        It never goes back, not even over a crash, and stands still while the ledger is closed, or when neither
        `renew_leases` nor `grant_lease` could be written for `AHEAD_S`.
        """

    # ------------------------------------------------------------------ clusters

    @abstractmethod
    async def create_cluster(self, new: NewCluster) -> ClusterRecord:
        """Record a cluster (``pending``), with its event.

        Raises
        ------
        Conflict
            If a living cluster of the tenant has the name, or any cluster, living or ended, has the id or was handed out to
            a request for it (``requested_as``).
        """

    @abstractmethod
    async def change_cluster(self, change: ClusterChange) -> ClusterRecord | None:
        """Let an event happen to a cluster, with its event row, through ``CLUSTER_TRANSITIONS``.

        Guards: `change.epoch` is the cluster's present one, and at ``CLOSED`` no lease of it holds slots. Returns the new
        record, or ``None`` if a guard, the fence or the table refused. ``OPEN`` counts the epoch up; every event that ends a
        scheduler clears agent, address and authority.
        """

    @abstractmethod
    async def scale_cluster(self, cluster_id: str, n_workers: int) -> ClusterRecord | None:
        """Change the target of a living cluster; ``None`` if there is none."""

    @abstractmethod
    async def adopt_spare(self, cluster_id: str, *, name: str, user: str, spec: ClusterSpec) -> ClusterRecord | None:
        """Hand a running spare out as a user's cluster; ``None`` if it is no running spare any more.

        Raises
        ------
        Conflict
            If a living cluster of the tenant has the name, or the request (``spec.requested_as``) has made a cluster before.
        """

    @abstractmethod
    async def get_cluster(self, cluster_id: str) -> ClusterRecord | None:
        """Return a cluster, living or ended, by its id or by the one that it was requested as."""

    @abstractmethod
    async def clusters(
        self, *, tenant: str | None = None, living: bool = True, spares: bool = True, limit: int = 1000
    ) -> list[ClusterRecord]:
        """Return clusters, newest first: living ones, or also those that ended; with spares that nobody has, or without."""

    @abstractmethod
    async def cluster_events(self, cluster_id: str) -> list[ClusterEventRecord]:
        """Return the story of a cluster, oldest first, with that of its slot leases; at most `MAX_CLUSTER_EVENTS`."""

    @abstractmethod
    async def grant_slots(self, leases: Sequence[SlotLease]) -> list[SlotLease]:
        """Record slot leases, all or none.

        Guards: each cluster lives, is starting or running, and has the lease's epoch; no lease has the id, and none of the
        cluster the worker's name. Returns them, or ``[]`` if refused.
        """

    @abstractmethod
    async def change_slots(self, lease_id: str, event: SlotLeaseEvent, *, reason: str = "") -> SlotLease | None:
        """Let an event happen to a slot lease through ``SLOT_LEASE_TRANSITIONS``; ``None`` if the table refused."""

    @abstractmethod
    async def slot_leases(self, *, cluster_id: str | None = None, ended: bool = False) -> list[SlotLease]:
        """Return the slot leases that hold slots, or also those that ended, oldest first."""

    @abstractmethod
    async def purge_clusters(self, *, ended_before_us: int, limit: int = 100) -> int:
        """Delete at most `limit` clusters that ended before then and hold no slots, with their events and leases."""

    # ------------------------------------------------------------------ reads

    @abstractmethod
    async def get(self, job_id: str) -> JobRecord | None:
        """Return the job of that id, whoever's it is: the caller compares the tenant."""

    @abstractmethod
    async def get_result(self, seq: int, run: int) -> StoredResult | None:
        """Return the result of that run, with its inline bytes, or ``None`` if none is kept."""

    @abstractmethod
    async def attempts(self, seq: int) -> list[AttemptRecord]:
        """Return all attempts of a job, oldest first."""

    @abstractmethod
    async def events(self, seq: int, *, after: int = 0, limit: int = 1000) -> list[EventRecord]:
        """Return the events of a job with ids above `after`, oldest first."""

    @abstractmethod
    async def list_jobs(self, where: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> JobPage:
        """Return a page, newest first. Bounded work: after a fixed number of rows looked at, a short page is returned with
        its cursor, so that no combination of filters can hold the reader for long.
        """

    @abstractmethod
    async def unfinished(self, *, after_seq: int = 0, limit: int = 1000) -> list[JobRecord]:
        """Return queued and running jobs of all tenants in ascending ``seq``: for recovery at start."""

    async def unknown_jobs(self, seqs: Sequence[int]) -> list[int]:
        """Return those of at most 500 handles that no job has: their rows are purged, or never were."""
        raise NotImplementedError

    @abstractmethod
    async def counts(self) -> dict[str, int]:
        """Return the number of ``queued`` and ``running`` runs (terminal ones are not counted: that would take a scan)."""

    # ------------------------------------------------------------------ retention

    @abstractmethod
    async def purge_results(self, *, limit: int = 100) -> list[str]:
        """Forget at most `limit` results that have expired; return the locations the result store must now delete.

        A location is returned again by later calls until `forget_locations` is told that it is deleted.
        """

    @abstractmethod
    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        """Return those that no result names and that are not to be deleted anyway: bytes that were stored for a result which
        was never recorded.
        """

    @abstractmethod
    async def forget_locations(self, locations: Sequence[str]) -> None:
        """The result store has deleted these."""

    @abstractmethod
    async def purge_jobs(self, *, finished_before_us: int, limit: int = 100) -> int:
        """Delete at most `limit` ended jobs (runs, attempts, events, tags) that ended before then and keep no result."""

    # ------------------------------------------------------------------ tokens

    @abstractmethod
    async def put_token(self, token: TokenRecord) -> None:
        """Keep a token, replacing one of the same ``token_id``."""

    async def revoke_token(self, token_id: str, *, at_us: int) -> TokenRecord | None:
        """Note that a token ended at `at_us` (UTC, microseconds), unless it was revoked before; return its record, or
        ``None`` if there is none of that id.
        """
        raise NotImplementedError

    async def forget_tokens(self, token_ids: Sequence[str], *, ended_by_us: int) -> int:
        """Delete those of at most 500 tokens that had expired or were revoked by `ended_by_us` (UTC, microseconds), and
        return how many; a token that had not ended by then stays.
        """
        raise NotImplementedError

    @abstractmethod
    async def tokens(self) -> list[TokenRecord]:
        """Return all tokens, ended ones too, until they are forgotten."""
