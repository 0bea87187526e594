"""The ledger in plain dictionaries: for tests, and for trying things out. Nothing outlives the process."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from dask_fleet.ledger import changes, lease_changes
from dask_fleet.ledger.changes import Change
from dask_fleet.ledger.cluster_memory import MemoryClusters
from dask_fleet.ledger.lease_clock import LeaseClock
from dask_fleet.ledger.rows import running_attempt
from dask_fleet.model.cluster_states import SlotLeaseEvent
from dask_fleet.model.clusters import ClusterChange, ClusterEventRecord, ClusterRecord, ClusterSpec, NewCluster, SlotLease
from dask_fleet.model.errors import FleetError, IdempotencyMismatch, LedgerUnavailable, NotFound
from dask_fleet.model.ids import random_id
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
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock, SystemClock
from dask_fleet.plugins.ledger import MAX_CLUSTER_EVENTS, Ledger, check_many

MOST_LOOKED_AT = 4_000
"""Most jobs looked at for one page."""


class MemoryLedger(Ledger):
    """Keeps everything in dictionaries: as durable as the process. Each write happens at once, between two awaits."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock: Clock = SystemClock() if clock is None else clock
        self._ledger_id = random_id("ledger")
        self._is_open = False
        self._jobs: dict[int, JobRecord] = {}
        self._seqs: dict[str, int] = {}
        self._attempts: dict[int, list[AttemptRecord]] = {}
        self._events: dict[int, list[EventRecord]] = {}
        self._results: dict[tuple[int, int], StoredResult] = {}
        self._doomed: set[str] = set()
        self._keys: dict[tuple[str, str, str], tuple[bytes, int, int]] = {}
        self._tokens: dict[str, TokenRecord] = {}
        self._leases: dict[str, AgentLease] = {}
        self._lease_horizon_us = 0
        self._lease_clock = LeaseClock(self._clock, 0)
        self._clusters = MemoryClusters()
        self._last_seq = 0
        self._last_event = 0

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Be ready; what was written before `close` is still there."""
        if not self._is_open:
            self._lease_clock = LeaseClock(self._clock, self._lease_horizon_us)
        self._is_open = True

    async def close(self) -> None:
        """Take nothing more."""
        self._is_open = False

    @property
    def ledger_id(self) -> str:
        """A random id."""
        return self._ledger_id

    def _now_us(self) -> int:
        if not self._is_open:
            raise LedgerUnavailable("the ledger is not open")
        return self._clock.now_us()

    # ------------------------------------------------------------------ writes

    async def accept(self, new: NewRun, *, claim_for: str | None = None) -> Accepted:
        """See the port."""
        now_us = self._now_us()
        key = (new.tenant, new.user, new.idempotency_key or "")
        if new.idempotency_key is not None and key in self._keys:
            digest, seq, _ = self._keys[key]
            if seq in self._jobs:
                if digest != new.request_digest:
                    raise IdempotencyMismatch(
                        "this Idempotency-Key was used with another request; use a fresh key for each request"
                    )
                return Accepted(job=self._jobs[seq], opened=False, claimed=False)
        change: Change | None
        if new.job_id in self._seqs:
            job = self._jobs[self._seqs[new.job_id]] = changes.with_tags(self._jobs[self._seqs[new.job_id]], new.tags)
            change = changes.asked_again(job, new, now_us=now_us, claim_for=claim_for)
        else:
            self._last_seq += 1
            change = changes.opened(new, seq=self._last_seq, now_us=now_us, claim_for=claim_for)
            job = change.job
            self._seqs[new.job_id] = job.seq
        if change is not None:
            job = self._apply(change, now_us)
        if new.idempotency_key is not None:
            self._keys[key] = (new.request_digest, job.seq, now_us)
        opened = change is not None
        return Accepted(job=job, opened=opened, claimed=opened and job.state is RunState.RUNNING)

    async def accept_many(self, news: Sequence[NewRun]) -> list[Accepted | FleetError]:
        """See the port."""
        self._now_us()
        check_many(news)
        answers: list[Accepted | FleetError] = []
        for new in news:
            try:
                answers.append(await self.accept(new))
            except IdempotencyMismatch as exc:
                answers.append(exc)
        return answers

    async def reopen(self, seq: int, *, by: str, claim_for: str | None = None) -> Accepted:
        """See the port.

        Raises
        ------
        NotFound
            If there is no such job.
        """
        now_us = self._now_us()
        if seq not in self._jobs:
            raise NotFound("no such job")
        change = changes.retried(self._jobs[seq], by=by, now_us=now_us, claim_for=claim_for)
        if change is None:
            return Accepted(job=self._jobs[seq], opened=False, claimed=False)
        job = self._apply(change, now_us)
        return Accepted(job=job, opened=True, claimed=job.state is RunState.RUNNING)

    async def claim(self, seq: int, run: int, *, agent: str) -> JobRecord | None:
        """See the port."""
        now_us = self._now_us()
        job = self._jobs.get(seq)
        change = None if job is None else changes.claimed(job, run, agent=agent, now_us=now_us)
        return None if change is None else self._apply(change, now_us)

    async def finish(self, end: AttemptEnd) -> JobRecord | None:
        """See the port."""
        now_us = self._now_us()
        changes.check_end(end)
        job = self._jobs.get(end.seq)
        change = None if job is None else changes.ended(job, end, now_us=now_us)
        return None if change is None else self._apply(change, now_us)

    async def request_cancel(self, seq: int, run: int, *, by: str) -> JobRecord | None:
        """See the port."""
        now_us = self._now_us()
        job = self._jobs.get(seq)
        change = None if job is None else changes.cancel_requested(job, run, by=by, now_us=now_us)
        return None if change is None else self._apply(change, now_us)

    async def expire(self, seq: int, run: int) -> JobRecord | None:
        """See the port."""
        now_us = self._now_us()
        job = self._jobs.get(seq)
        change = None if job is None else changes.expired(job, run, now_us=now_us)
        return None if change is None else self._apply(change, now_us)

    def _apply(self, change: Change, now_us: int) -> JobRecord:
        job = self._jobs[change.job.seq] = change.job
        story = self._events.setdefault(job.seq, [])
        for draft in change.events:
            self._last_event += 1
            story.append(EventRecord(event_id=self._last_event, run=job.run, attempt=draft.attempt, kind=draft.kind,
                                     at_us=now_us, data=draft.data))
        if change.ended is not None:
            self._attempts.setdefault(job.seq, []).append(change.ended)
        if change.result is not None:
            self._results[job.seq, job.run] = change.result
            old = self._results.get((job.seq, change.superseded_run or 0))
            if old is not None:
                until_us = min(old.expires_us, now_us + changes.SUPERSEDED_KEPT_US)
                self._results[job.seq, old.run] = replace(old, expires_us=until_us)
        return job

    # ------------------------------------------------------------------ leases of agents

    async def grant_lease(self, agent: str, *, name: str, pool: str) -> AgentLease:
        """See the port."""
        utc_us = self._now_us()
        now_us = self._lease_clock.now_us()
        lease = lease_changes.granted(self._leases.get(agent), agent, name=name, pool=pool, now_us=now_us, utc_us=utc_us)
        self._leases[agent] = lease
        self._keep_lease_clock()
        return lease

    async def renew_leases(self, leases: Sequence[tuple[str, int]]) -> list[str]:
        """See the port."""
        self._now_us()
        now_us = self._lease_clock.now_us()
        refused = []
        for agent, epoch in leases:
            lease = lease_changes.renewed(self._leases.get(agent), epoch, now_us=now_us)
            if lease is None:
                refused.append(agent)
            else:
                self._leases[agent] = lease
        self._keep_lease_clock()
        return refused

    async def end_lease(self, agent: str, epoch: int, event: LeaseEvent) -> bool:
        """See the port."""
        utc_us = self._now_us()
        now_us = self._lease_clock.now_us()
        lease = lease_changes.ended(self._leases.get(agent), epoch, event, now_us=now_us, utc_us=utc_us)
        if lease is None:
            return False
        self._leases[agent] = lease
        return True

    async def leases(self) -> list[AgentLease]:
        """See the port."""
        since_us = self._now_us() - lease_changes.TOLD_US
        return [lease for _, lease in sorted(self._leases.items()) if lease.ended_us is None or lease.ended_us > since_us]

    def lease_now_us(self) -> int:
        """See the port."""
        return self._lease_clock.now_us()

    def _keep_lease_clock(self) -> None:
        self._lease_horizon_us = self._lease_clock.next_horizon_us()
        self._lease_clock.extend(self._lease_horizon_us)

    # ------------------------------------------------------------------ clusters

    async def create_cluster(self, new: NewCluster) -> ClusterRecord:
        """See the port."""
        return self._clusters.create(new, self._now_us())

    async def change_cluster(self, change: ClusterChange) -> ClusterRecord | None:
        """See the port."""
        return self._clusters.change(change, self._now_us())

    async def scale_cluster(self, cluster_id: str, n_workers: int) -> ClusterRecord | None:
        """See the port."""
        return self._clusters.scale(cluster_id, n_workers, self._now_us())

    async def adopt_spare(self, cluster_id: str, *, name: str, user: str, spec: ClusterSpec) -> ClusterRecord | None:
        """See the port."""
        return self._clusters.adopt(cluster_id, name, user, spec, self._now_us())

    async def get_cluster(self, cluster_id: str) -> ClusterRecord | None:
        """See the port."""
        return self._clusters.get(cluster_id)

    async def clusters(
        self, *, tenant: str | None = None, living: bool = True, spares: bool = True, limit: int = 1000
    ) -> list[ClusterRecord]:
        """See the port."""
        return self._clusters.clusters(tenant, limit, living=living, spares=spares)

    async def cluster_events(self, cluster_id: str) -> list[ClusterEventRecord]:
        """See the port."""
        return self._clusters.events(cluster_id, MAX_CLUSTER_EVENTS)

    async def grant_slots(self, leases: Sequence[SlotLease]) -> list[SlotLease]:
        """See the port."""
        return self._clusters.grant(leases, self._now_us())

    async def change_slots(self, lease_id: str, event: SlotLeaseEvent, *, reason: str = "") -> SlotLease | None:
        """See the port."""
        return self._clusters.change_slots(lease_id, event, reason, self._now_us())

    async def slot_leases(self, *, cluster_id: str | None = None, ended: bool = False) -> list[SlotLease]:
        """See the port."""
        return self._clusters.slots(cluster_id, ended=ended)

    async def purge_clusters(self, *, ended_before_us: int, limit: int = 100) -> int:
        """See the port."""
        self._now_us()
        return self._clusters.purge(ended_before_us, limit)

    # ------------------------------------------------------------------ reads

    async def get(self, job_id: str) -> JobRecord | None:
        """See the port."""
        seq = self._seqs.get(job_id)
        return None if seq is None else self._jobs[seq]

    async def get_result(self, seq: int, run: int) -> StoredResult | None:
        """See the port."""
        return self._results.get((seq, run))

    async def attempts(self, seq: int) -> list[AttemptRecord]:
        """See the port."""
        ended = self._attempts.get(seq, [])
        running = running_attempt(self._jobs[seq]) if seq in self._jobs else None
        return [*ended] if running is None else [*ended, running]

    async def events(self, seq: int, *, after: int = 0, limit: int = 1000) -> list[EventRecord]:
        """See the port."""
        return [event for event in self._events.get(seq, []) if event.event_id > after][:limit]

    async def list_jobs(self, where: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> JobPage:
        """See the port."""
        found: list[JobRecord] = []
        looked_at = 0
        for seq in sorted(self._jobs, reverse=True):
            if before_seq is not None and seq >= before_seq:
                continue
            if len(found) == limit:
                return JobPage(jobs=found, next_before_seq=found[-1].seq if found else None)
            if looked_at == MOST_LOOKED_AT:
                return JobPage(jobs=found, next_before_seq=seq + 1)
            looked_at += 1
            if _fits(self._jobs[seq], where):
                found.append(self._jobs[seq])
        return JobPage(jobs=found, next_before_seq=None)

    async def unfinished(self, *, after_seq: int = 0, limit: int = 1000) -> list[JobRecord]:
        """See the port."""
        return [job for seq, job in sorted(self._jobs.items()) if seq > after_seq and not job.state.is_terminal][:limit]

    async def unknown_jobs(self, seqs: Sequence[int]) -> list[int]:
        """See the port."""
        return [seq for seq in seqs if seq not in self._jobs]

    async def counts(self) -> dict[str, int]:
        """See the port."""
        return {
            str(state): sum(job.state is state for job in self._jobs.values())
            for state in (RunState.QUEUED, RunState.RUNNING)
        }

    # ------------------------------------------------------------------ retention

    async def purge_results(self, *, limit: int = 100) -> list[str]:
        """See the port."""
        now_us = self._now_us()
        expired = sorted((result.expires_us, key) for key, result in self._results.items() if result.expires_us <= now_us)
        for _, (seq, run) in expired[: max(limit, 0)]:
            result = self._results.pop((seq, run))
            if result.location is not None:
                self._doomed.add(result.location)
            if self._jobs[seq].result_run == run:
                self._jobs[seq] = replace(self._jobs[seq], result_run=None, result_expires_us=None)
        return sorted(self._doomed)

    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        """See the port."""
        known = self._doomed | {result.location for result in self._results.values() if result.location is not None}
        return [location for location in locations if location not in known]

    async def forget_locations(self, locations: Sequence[str]) -> None:
        """See the port."""
        self._now_us()
        self._doomed.difference_update(locations)

    async def purge_jobs(self, *, finished_before_us: int, limit: int = 100) -> int:
        """See the port. Idempotency keys older than a day go as well."""
        now_us = self._now_us()
        old = sorted(
            (job.finished_us, seq) for seq, job in self._jobs.items()
            if job.finished_us is not None and job.finished_us < finished_before_us and job.result_run is None
        )[: max(limit, 0)]
        for _, seq in old:
            del self._seqs[self._jobs.pop(seq).job_id]
            self._events.pop(seq, None)
            self._attempts.pop(seq, None)
            for key in [key for key in self._results if key[0] == seq]:
                location = self._results.pop(key).location
                if location is not None:
                    self._doomed.add(location)
        kept_from_us = now_us - changes.IDEMPOTENCY_KEPT_US
        self._keys = {key: kept for key, kept in self._keys.items() if kept[2] >= kept_from_us}
        return len(old)

    # ------------------------------------------------------------------ tokens

    async def put_token(self, token: TokenRecord) -> None:
        """See the port."""
        self._now_us()
        self._tokens[token.token_id] = token

    async def revoke_token(self, token_id: str, *, at_us: int) -> TokenRecord | None:
        """See the port."""
        self._now_us()
        record = self._tokens.get(token_id)
        if record is not None and record.revoked_us is None:
            record = self._tokens[token_id] = replace(record, revoked_us=at_us)
        return record

    async def forget_tokens(self, token_ids: Sequence[str], *, ended_by_us: int) -> int:
        """See the port."""
        self._now_us()
        ended = [
            token_id for token_id in set(token_ids)
            if (record := self._tokens.get(token_id)) is not None
            and (record.ended_us is not None and record.ended_us <= ended_by_us)
        ]
        for token_id in ended:
            del self._tokens[token_id]
        return len(ended)

    async def tokens(self) -> list[TokenRecord]:
        """See the port."""
        return [token for _, token in sorted(self._tokens.items())]


def _fits(job: JobRecord, where: JobFilter) -> bool:
    return (
        job.tenant == where.tenant
        and where.state in {None, job.state}
        and where.service in {None, job.service}
        and where.endpoint in {None, job.endpoint}
        and where.user in {None, job.user}
        and (where.tag is None or where.tag in job.tags)
        and (where.created_after_us is None or job.created_us >= where.created_after_us)
        and (where.created_before_us is None or job.created_us < where.created_before_us)
    )
