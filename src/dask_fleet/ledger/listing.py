"""Listings with bounded work: the most selective index gives candidates, at most so many of them are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice, pairwise
from typing import Any, NamedTuple

from dask_fleet.ledger import rows, statements
from dask_fleet.model.jobs import JobFilter, JobPage, JobRecord
from dask_fleet.model.states import RunState

_SQL = statements.load("listing")

MOST_LOOKED_AT = 4_000
"""Most candidates of one page: what the reader does in some 20 ms with a million jobs."""

_PROBE = 500
"""So far each index is read to find the most selective one."""

_END = 1 << 62


class Arm(NamedTuple):
    """A key of an index: within it, ``seq`` ascends."""

    sql: str
    key: tuple[object, ...]


class Window(NamedTuple):
    """Candidates, newest first, and from where on they are complete."""

    candidates: list[int]
    horizon: int
    """All of the arms' rows at or above it were seen; 0 if the arms are exhausted."""


class Listing:
    """Pages over the indexes, to be called in the reader's thread."""

    def __init__(self, connection: Any) -> None:
        self._execute = connection.execute

    def list_jobs(self, where: JobFilter, before_seq: int | None, limit: int) -> JobPage:
        """See `Ledger.list_jobs`."""
        low, high = self._seq_range(where)
        high = min(high, _END if before_seq is None else before_seq)
        if low >= high or limit < 1:
            return JobPage(jobs=[], next_before_seq=None)
        drivers = self._drivers(where)
        arms = drivers[0]
        if len(drivers) > 1:
            sizes = [len(self._window(driver, low, high, _PROBE).candidates) for driver in drivers]
            arms = drivers[sizes.index(min(sizes))]
        is_exact = len(drivers) == 1 and where.created_after_us is None and where.created_before_us is None
        window = self._window(arms, low, high, (limit + 1) * len(arms) if is_exact else MOST_LOOKED_AT)
        if is_exact:
            jobs = self._rows(window.candidates[: limit + 1], where)
        else:
            jobs = self._matching(window.candidates, where, limit + 1)
        if len(jobs) > limit:
            return JobPage(jobs=jobs[:limit], next_before_seq=jobs[limit - 1].seq)
        return JobPage(jobs=jobs, next_before_seq=window.horizon or None)

    def unfinished(self, after_seq: int, limit: int) -> list[JobRecord]:
        """See `Ledger.unfinished`."""
        arms = [(state, tenant) for state in (RunState.QUEUED, RunState.RUNNING) for tenant in self._tenants(state)]
        found = [self._seqs(_SQL["unfinished"], (*arm, after_seq, limit)) for arm in arms]
        return self._rows(list(islice(merge(*found), limit)), JobFilter(tenant=""))

    # ------------------------------------------------------------------ candidates

    def _drivers(self, where: JobFilter) -> list[list[Arm]]:
        tenant = where.tenant
        drivers: list[list[Arm]] = []
        if where.tag is not None:
            drivers.append([Arm(_SQL["by_tag"], (tenant, where.tag))])
        if where.user is not None:
            drivers.append([Arm(_SQL["by_user"], (tenant, where.user))])
        if where.service is not None:
            arms = [Arm(_SQL["by_endpoint"], (tenant, where.service, name)) for name in self._endpoints_asked(where)]
            drivers.append(arms)
        if where.state is not None:
            drivers.append([Arm(_SQL["by_state"], (where.state, tenant))])
        return drivers or [[Arm(_SQL["by_state"], (state, tenant)) for state in RunState]]

    def _window(self, arms: list[Arm], low: int, high: int, most: int) -> Window:
        """Read at most about `most` candidates of all arms together."""
        if not arms:
            return Window([], 0)
        each = -(-most // len(arms))
        horizon = 0
        found = []
        for arm in arms:
            seqs = self._seqs(arm.sql, (*arm.key, low, high, each))
            if len(seqs) == each:  # there may be more of it further down: below that, the others prove nothing
                horizon = max(horizon, seqs[-1])
            found.append(seqs)
        if len(found) == 1:
            return Window(found[0], horizon)
        return Window([seq for seq in merge(*found, reverse=True) if seq >= horizon], horizon)

    def _seqs(self, sql: str, bindings: tuple[object, ...]) -> list[int]:
        return [seq for (seq,) in self._execute(sql, bindings)]

    def _tenants(self, state: RunState) -> Iterator[str]:
        tenant = ""
        while row := self._execute(_SQL["next_tenant_in_state"], (state, tenant)).fetchone():
            (tenant,) = row
            yield tenant

    def _endpoints_asked(self, where: JobFilter) -> list[str]:
        if where.endpoint is not None:
            return [where.endpoint]
        found: list[str] = []
        endpoint = ""
        while row := self._execute(_SQL["next_endpoint"], (where.tenant, where.service, endpoint)).fetchone():
            (endpoint,) = row
            found.append(endpoint)
        return found

    # ------------------------------------------------------------------ rows

    def _matching(self, candidates: list[int], where: JobFilter, limit: int) -> list[JobRecord]:
        """Return the first `limit` of the candidates that fit, in their order.

        Conditions are looked up in their indexes, whose pages lie close together, before any row is read.
        """
        found: list[JobRecord] = []
        conditions = {
            "state": where.state, "user": where.user, "service": where.service, "tag": where.tag, "tenant": where.tenant,
            "endpoints": None if where.service is None else rows.to_json(self._endpoints_asked(where)),
        }
        begin, size = 0, limit
        while begin < len(candidates) and len(found) < limit:
            conditions["candidates"] = rows.to_json(candidates[begin : begin + size])
            fitting = [seq for (seq,) in self._execute(_SQL["fitting"], conditions)]
            while fitting and len(found) < limit:  # again only where a clock that went back left others among them
                most = limit - len(found)
                found += self._rows(fitting[:most], where)
                fitting = fitting[most:]
            begin += size
            size *= 4  # few fit: look at more at once
        return found

    def _rows(self, seqs: list[int], where: JobFilter) -> list[JobRecord]:
        bindings = {
            "seqs": rows.to_json(seqs), "created_after_us": where.created_after_us,
            "created_before_us": where.created_before_us,
        }
        return [self._job(row) for row in self._execute(_SQL["rows_of"], bindings)]

    def _job(self, row: rows.Row) -> JobRecord:
        raise NotImplementedError

    # ------------------------------------------------------------------ time

    def _seq_range(self, where: JobFilter) -> tuple[int, int]:
        """Return bounds of ``seq`` outside which no job was created in the time asked for."""
        after, before = where.created_after_us, where.created_before_us
        if after is None and before is None:
            return 0, _END
        steps = [0, *self._seqs(_SQL["clock_steps"], ()), _END]
        low, high = _END, 0
        for begin, end in pairwise(steps):
            first = begin if after is None else self._first_created(begin, end, after)
            last = end if before is None else self._first_created(begin, end, before)
            if first < last:
                low, high = min(low, first), max(high, last)
        return low, high

    def _first_created(self, begin: int, end: int, at_us: int) -> int:
        """Return the first seq in ``[begin, end)`` created at `at_us` or later, or `end`."""
        row = self._execute("SELECT max(seq) FROM jobs WHERE seq < ?", (end,)).fetchone()
        last = -1 if row[0] is None else row[0]
        if last < begin:
            return end
        low, high = begin, last + 1
        while low < high:
            middle = (low + high) // 2
            seq, created_us = self._execute(_SQL["first_created_from"], (middle,)).fetchone()
            if seq >= high or created_us >= at_us:
                high = middle
            else:
                low = seq + 1
        return low if low <= last else end
