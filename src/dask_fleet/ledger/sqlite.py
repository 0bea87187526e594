"""The ledger on SQLite: durable on one host, no server to run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from dask_fleet.ledger.clusters import Clusters
from dask_fleet.ledger.connections import Synchronous, check_sqlite, open_reader, open_writer
from dask_fleet.ledger.lease_changes import TOLD_US
from dask_fleet.ledger.leases import Leases
from dask_fleet.ledger.lock import OwnerLock, refuse_network_file_system
from dask_fleet.ledger.migrations import migrate
from dask_fleet.ledger.reader import ReaderThread, Reads
from dask_fleet.ledger.retention import RESULTS_A_BATCH, Retention
from dask_fleet.ledger.threads import MAX_ROWS
from dask_fleet.ledger.writer import MEDIUM_ERRORS, GroupCommit
from dask_fleet.ledger.writes import Writes
from dask_fleet.model.cluster_states import SlotLeaseEvent
from dask_fleet.model.clusters import ClusterChange, ClusterEventRecord, ClusterRecord, ClusterSpec, NewCluster, SlotLease
from dask_fleet.model.errors import FleetError, LedgerUnavailable
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
from dask_fleet.plugins.clock import Clock, SystemClock
from dask_fleet.plugins.ledger import Ledger, check_many


class _Opened:
    """What an open ledger holds."""

    def __init__(self, path: Path, clock: Clock, synchronous: Synchronous) -> None:
        self.lock = OwnerLock(path.with_name(path.name + ".lock"))
        self.lock.acquire()
        try:
            connection: Any = open_writer(path, synchronous=synchronous)
            try:
                self.ledger_id = migrate(connection)
                self.writes = Writes(connection, clock)
                self.retention = Retention(connection, self.writes)
                self.clusters = Clusters(connection, self.writes)
                self.leases = Leases(connection, self.writes, clock)
                self.writer = GroupCommit(connection, self.writes)
                reading = open_reader(path)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self.lock.release()
            raise
        self.reads = Reads(reading)
        self.reader = ReaderThread(reading)


class SQLiteLedger(Ledger):
    """Keeps everything in one SQLite file in WAL mode, written through one connection with group commit.

    Parameters
    ----------
    path
        The database; beside it lie ``-wal``, ``-shm`` and ``.lock``. Its folder must exist, on a local file system.
    clock
        What time it is.
    synchronous
        ``FULL`` makes each commit durable. The others exist so that tests can prove that they would notice.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, synchronous: Synchronous = "FULL") -> None:
        self._path = path
        self._clock: Clock = SystemClock() if clock is None else clock
        self._synchronous: Synchronous = synchronous
        self._opened: _Opened | None = None

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Migrate if needed and become the one owner.

        Raises
        ------
        LedgerInUse, LedgerTooNew
            See the port.
        ConfigError
            If SQLite is too old or the folder is on a network file system.
        LedgerUnavailable
            If the file cannot be read or written.
        """
        if self._opened is not None:
            return
        check_sqlite()
        refuse_network_file_system(self._path.parent)
        try:
            opened = await asyncio.to_thread(_Opened, self._path, self._clock, self._synchronous)
        except MEDIUM_ERRORS as exc:
            raise LedgerUnavailable(f"the ledger {self._path} cannot be opened: {exc}") from exc
        loop = asyncio.get_running_loop()
        opened.writer.start(loop)
        opened.reader.start(loop)
        self._opened = opened

    async def close(self) -> None:
        """Finish what was begun, copy the log into the database, let go."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        # The reader first: the writer's last checkpoint then finds nobody in its way.
        await opened.reader.stop()
        await opened.writer.stop()
        opened.lock.release()

    @property
    def ledger_id(self) -> str:
        """The random id made with the file."""
        return self._open.ledger_id

    @property
    def refusing(self) -> str | None:
        """See the port."""
        return self._open.writer.refusing

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise LedgerUnavailable("the ledger is not open")
        return self._opened

    # ------------------------------------------------------------------ writes

    async def accept(self, new: NewRun, *, claim_for: str | None = None) -> Accepted:
        """See the port."""
        opened = self._open
        return cast("Accepted", await opened.writer.submit(opened.writes.accept, new, claim_for, rows=4 + len(new.tags)))

    async def accept_many(self, news: Sequence[NewRun]) -> list[Accepted | FleetError]:
        """See the port."""
        opened = self._open
        check_many(news)
        return cast("list[Accepted | FleetError]", await opened.writer.submit_steps(opened.writes.accept_many, tuple(news)))

    async def reopen(self, seq: int, *, by: str, claim_for: str | None = None) -> Accepted:
        """See the port.

        Raises
        ------
        NotFound
            If there is no such job.
        """
        opened = self._open
        return cast("Accepted", await opened.writer.submit(opened.writes.reopen, seq, by, claim_for, rows=4))

    async def claim(self, seq: int, run: int, *, agent: str) -> JobRecord | None:
        """See the port."""
        opened = self._open
        return cast("JobRecord | None", await opened.writer.submit(opened.writes.claim, seq, run, agent, rows=2))

    async def finish(self, end: AttemptEnd) -> JobRecord | None:
        """See the port."""
        opened = self._open
        return cast("JobRecord | None", await opened.writer.submit(opened.writes.finish, end, rows=4))

    async def request_cancel(self, seq: int, run: int, *, by: str) -> JobRecord | None:
        """See the port."""
        opened = self._open
        return cast("JobRecord | None", await opened.writer.submit(opened.writes.request_cancel, seq, run, by, rows=2))

    async def expire(self, seq: int, run: int) -> JobRecord | None:
        """See the port."""
        opened = self._open
        return cast("JobRecord | None", await opened.writer.submit(opened.writes.expire, seq, run, rows=2))

    # ------------------------------------------------------------------ leases of agents

    async def grant_lease(self, agent: str, *, name: str, pool: str) -> AgentLease:
        """See the port."""
        leases = self._open.leases
        lease, horizon_us = await self._open.writer.submit(leases.grant, agent, name, pool, rows=3)
        leases.clock.extend(horizon_us)
        return cast("AgentLease", lease)

    async def renew_leases(self, leases: Sequence[tuple[str, int]]) -> list[str]:
        """See the port."""
        kept = self._open.leases
        refused, horizon_us = await self._open.writer.submit(kept.renew, tuple(leases), rows=1 + len(leases))
        kept.clock.extend(horizon_us)
        return cast("list[str]", refused)

    async def end_lease(self, agent: str, epoch: int, event: LeaseEvent) -> bool:
        """See the port."""
        opened = self._open
        return cast("bool", await opened.writer.submit(opened.leases.end, agent, epoch, event))

    async def leases(self) -> list[AgentLease]:
        """See the port."""
        opened = self._open
        found = await opened.reader.submit(opened.reads.leases, self._clock.now_us() - TOLD_US)
        return cast("list[AgentLease]", found)

    def lease_now_us(self) -> int:
        """See the port."""
        return self._open.leases.clock.now_us()

    # ------------------------------------------------------------------ clusters

    async def create_cluster(self, new: NewCluster) -> ClusterRecord:
        """See the port."""
        opened = self._open
        return cast("ClusterRecord", await opened.writer.submit(opened.clusters.create, new, rows=2))

    async def change_cluster(self, change: ClusterChange) -> ClusterRecord | None:
        """See the port."""
        opened = self._open
        return cast("ClusterRecord | None", await opened.writer.submit(opened.clusters.change, change, rows=2))

    async def scale_cluster(self, cluster_id: str, n_workers: int) -> ClusterRecord | None:
        """See the port."""
        opened = self._open
        scaled = await opened.writer.submit(opened.clusters.scale, cluster_id, n_workers, rows=2)
        return cast("ClusterRecord | None", scaled)

    async def adopt_spare(self, cluster_id: str, *, name: str, user: str, spec: ClusterSpec) -> ClusterRecord | None:
        """See the port."""
        opened = self._open
        adopted = await opened.writer.submit(opened.clusters.adopt, cluster_id, name, user, spec, rows=2)
        return cast("ClusterRecord | None", adopted)

    async def get_cluster(self, cluster_id: str) -> ClusterRecord | None:
        """See the port."""
        opened = self._open
        return cast("ClusterRecord | None", await opened.reader.submit(opened.reads.cluster, cluster_id))

    async def clusters(
        self, *, tenant: str | None = None, living: bool = True, spares: bool = True, limit: int = 1000
    ) -> list[ClusterRecord]:
        """See the port."""
        opened = self._open
        call = partial(opened.reads.clusters, living=living, spares=spares)
        return cast("list[ClusterRecord]", await opened.reader.submit(call, tenant, limit))

    async def cluster_events(self, cluster_id: str) -> list[ClusterEventRecord]:
        """See the port."""
        opened = self._open
        return cast("list[ClusterEventRecord]", await opened.reader.submit(opened.reads.cluster_events, cluster_id))

    async def grant_slots(self, leases: Sequence[SlotLease]) -> list[SlotLease]:
        """See the port."""
        opened = self._open
        granted = await opened.writer.submit(opened.clusters.grant, tuple(leases), rows=2 * len(leases))
        return cast("list[SlotLease]", granted)

    async def change_slots(self, lease_id: str, event: SlotLeaseEvent, *, reason: str = "") -> SlotLease | None:
        """See the port."""
        opened = self._open
        changed = await opened.writer.submit(opened.clusters.change_slots, lease_id, event, reason, rows=2)
        return cast("SlotLease | None", changed)

    async def slot_leases(self, *, cluster_id: str | None = None, ended: bool = False) -> list[SlotLease]:
        """See the port."""
        opened = self._open
        call = partial(opened.reads.slot_leases, ended=ended)
        return cast("list[SlotLease]", await opened.reader.submit(call, cluster_id))

    async def purge_clusters(self, *, ended_before_us: int, limit: int = 100) -> int:
        """See the port."""
        opened = self._open
        purged = await opened.writer.submit(opened.clusters.purge, ended_before_us, limit, rows=MAX_ROWS, long=True)
        return cast("int", purged)

    # ------------------------------------------------------------------ reads

    async def get(self, job_id: str) -> JobRecord | None:
        """See the port."""
        opened = self._open
        return cast("JobRecord | None", await opened.reader.submit(opened.reads.get, job_id))

    async def get_result(self, seq: int, run: int) -> StoredResult | None:
        """See the port."""
        opened = self._open
        return cast("StoredResult | None", await opened.reader.submit(opened.reads.get_result, seq, run))

    async def attempts(self, seq: int) -> list[AttemptRecord]:
        """See the port."""
        opened = self._open
        return cast("list[AttemptRecord]", await opened.reader.submit(opened.reads.attempts, seq))

    async def events(self, seq: int, *, after: int = 0, limit: int = 1000) -> list[EventRecord]:
        """See the port."""
        opened = self._open
        return cast("list[EventRecord]", await opened.reader.submit(opened.reads.events, seq, after, limit))

    async def list_jobs(self, where: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> JobPage:
        """See the port."""
        opened = self._open
        return cast("JobPage", await opened.reader.submit(opened.reads.list_jobs, where, before_seq, limit))

    async def unfinished(self, *, after_seq: int = 0, limit: int = 1000) -> list[JobRecord]:
        """See the port."""
        opened = self._open
        return cast("list[JobRecord]", await opened.reader.submit(opened.reads.unfinished, after_seq, limit))

    async def unknown_jobs(self, seqs: Sequence[int]) -> list[int]:
        """See the port."""
        opened = self._open
        return cast("list[int]", await opened.reader.submit(opened.reads.unknown_jobs, tuple(seqs)))

    async def counts(self) -> dict[str, int]:
        """See the port."""
        opened = self._open
        return cast("dict[str, int]", await opened.reader.submit(opened.reads.counts))

    # ------------------------------------------------------------------ retention

    async def purge_results(self, *, limit: int = 100) -> list[str]:
        """See the port."""
        opened = self._open
        left = limit
        while left > 0:
            piece = min(left, RESULTS_A_BATCH)
            if await opened.writer.submit(opened.retention.forget_results, piece, rows=MAX_ROWS, long=True) < piece:
                break
            left -= piece
        return cast("list[str]", await opened.writer.submit(opened.retention.doomed_locations, long=True))

    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        """See the port."""
        opened = self._open
        found: list[str] = []
        for begin in range(0, len(locations), MAX_ROWS):
            piece = tuple(locations[begin : begin + MAX_ROWS])
            found += await opened.reader.submit(opened.reads.unknown_locations, piece)
        return found

    async def forget_locations(self, locations: Sequence[str]) -> None:
        """See the port."""
        opened = self._open
        for begin in range(0, len(locations), MAX_ROWS):
            piece = tuple(locations[begin : begin + MAX_ROWS])
            await opened.writer.submit(opened.retention.forget_locations, piece, rows=len(piece), long=True)

    async def purge_jobs(self, *, finished_before_us: int, limit: int = 100) -> int:
        """See the port. Idempotency keys older than a day go as well."""
        opened = self._open
        retention = opened.retention
        purged = 0
        while purged < limit:
            left = limit - purged
            count = await opened.writer.submit(retention.purge_jobs, finished_before_us, left, rows=MAX_ROWS, long=True)
            if count == 0:
                break
            purged += count
        while await opened.writer.submit(retention.purge_idempotency, rows=MAX_ROWS, long=True) >= MAX_ROWS:
            pass
        return purged

    # ------------------------------------------------------------------ tokens

    async def put_token(self, token: TokenRecord) -> None:
        """See the port."""
        opened = self._open
        await opened.writer.submit(opened.writes.put_token, token)

    async def revoke_token(self, token_id: str, *, at_us: int) -> TokenRecord | None:
        """See the port."""
        opened = self._open
        return cast("TokenRecord | None", await opened.writer.submit(opened.writes.revoke_token, token_id, at_us))

    async def forget_tokens(self, token_ids: Sequence[str], *, ended_by_us: int) -> int:
        """See the port."""
        opened = self._open
        forget = opened.writes.forget_tokens
        return cast(
            "int", await opened.writer.submit(forget, tuple(token_ids), ended_by_us, rows=len(token_ids), long=True)
        )

    async def tokens(self) -> list[TokenRecord]:
        """See the port."""
        opened = self._open
        return cast("list[TokenRecord]", await opened.reader.submit(opened.reads.tokens))
