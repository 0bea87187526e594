"""Which worker of which cluster gets slots on which agent: pure functions over what is free.

Fair order: round robin over users, then first come, first served. Every waiting cluster gets its first worker before any
other grows. A cluster whose first worker fits nowhere yet gets a *promise*: the slots of one agent are kept from jobs until
enough of them are free, so that a worker of many threads does not starve behind many small jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dask_fleet.controller.clusters.capacity import Host, Size, amounts_text, declared_names

SMALL_POOL_SLOTS = 4
Owner = tuple[str, str]
"""Tenant and user."""


class Need(NamedTuple):
    """What one cluster still lacks."""

    cluster_id: str
    owner: Owner
    pool: str
    threads: int
    """Of each worker."""
    missing: int
    """Workers."""
    since: float
    """Since when it waits, by the monotonic clock."""
    near: str | None = None
    """Agent of its scheduler: a worker there spares the network."""
    urgent: bool = False
    """It had workers and lost them: before those that have none yet."""
    is_users: bool = False
    """It is a user's own: it takes none of the slots that are kept for jobs."""
    memory_bytes: int = 0
    resources: tuple[tuple[str, float], ...] = ()
    """These two of each worker, as of `Size`."""

    @property
    def size(self) -> Size:
        """What each worker is to have."""
        return Size(self.threads, self.memory_bytes, self.resources)


class Grant(NamedTuple):
    """One worker's slots."""

    cluster_id: str
    agent: str


Rooms = dict[str, int]
"""By pool, how many slots users' clusters may still take; a pool that is not in it has no limit."""


def kept_for_jobs(slots: int, share: float) -> int:
    """Return how many slots of a pool users' clusters may not take: the share, rounded up; none of fewer than four."""
    return min(math.ceil(slots * share), slots - 1) if slots >= SMALL_POOL_SLOTS and share > 0 else 0


def has_room(need: Need, rooms: Rooms) -> bool:
    """Whether one more worker of it leaves jobs what is kept for them."""
    return not need.is_users or rooms.get(need.pool, need.threads) >= need.threads


def _take_room(need: Need, rooms: Rooms, slots: int) -> None:
    if need.is_users and need.pool in rooms:
        rooms[need.pool] -= slots


class Turns:
    """Whose turn it is: who was served longest ago comes first."""

    def __init__(self) -> None:
        self._served: dict[Owner, int] = {}
        self._turn = 0

    def rank(self, need: Need) -> tuple[bool, int, float, str]:
        """Return what to sort by: the smallest comes next."""
        return not need.urgent, self._served.get(need.owner, 0), need.since, need.cluster_id

    def take(self, owner: Owner) -> None:
        """Note that this user was served."""
        self._turn += 1
        self._served[owner] = self._turn

    def forget(self, waiting: set[Owner]) -> None:
        """Who waits for nothing has no debt any more, and the books do not grow with users."""
        for owner in self._served.keys() - waiting:
            del self._served[owner]


def best_host(hosts: Sequence[Host], need: Need) -> Host | None:
    """Return where a worker fits now: beside its scheduler if it can, else where most is free."""
    names = declared_names(hosts, need.pool) if need.resources else frozenset()
    fitting = [host for host in hosts if host.pool == need.pool and host.fits(need.size, names)]
    if not fitting:
        return None
    return max(fitting, key=lambda host: (host.agent == need.near, host.free, host.agent))


def first_workers(
    needs: Sequence[Need], hosts: Sequence[Host], turns: Turns, rooms: Rooms | None = None
) -> tuple[list[Grant], tuple[Need, Host] | None]:
    """Give each cluster one worker, in fair order, as far as slots reach, and `rooms`, which become smaller.

    Returns
    -------
    grants
        In order.
    promise
        The first cluster that got none though an agent is large enough, and the agent whose slots to keep for it.
    """
    grants: list[Grant] = []
    promise: tuple[Need, Host] | None = None
    waiting = list(needs)
    rooms = {} if rooms is None else rooms
    while waiting:
        need = min(waiting, key=turns.rank)
        waiting.remove(need)
        if not has_room(need, rooms):
            continue  # it waits for other clusters, not for jobs
        host = best_host(hosts, need)
        if host is not None:
            _take_room(need, rooms, host.take(need.size))
            turns.take(need.owner)
            grants.append(Grant(need.cluster_id, host.agent))
        elif promise is None:
            names = declared_names(hosts, need.pool)
            able = [host for host in hosts if host.pool == need.pool and host.could_fit(need.size, names)]
            if able:
                kept = max(able, key=lambda host: (host.free, host.agent == need.near, host.agent))
                kept.take(need.size)  # nobody behind it in the line may take them
                promise = need, kept
    return grants, promise


def growth(needs: Sequence[Need], hosts: Sequence[Host], turns: Turns, rooms: Rooms | None = None) -> list[Grant]:
    """Give further workers, one a turn, in fair order, as far as slots reach, and `rooms`, which become smaller."""
    grants: list[Grant] = []
    rooms = {} if rooms is None else rooms
    waiting = {need: need.missing for need in needs if need.missing > 0}
    while waiting:
        need = min(waiting, key=turns.rank)
        host = best_host(hosts, need) if has_room(need, rooms) else None
        if host is None:
            del waiting[need]
            continue
        _take_room(need, rooms, host.take(need.size))
        turns.take(need.owner)
        grants.append(Grant(need.cluster_id, host.agent))
        waiting[need] -= 1
        if waiting[need] == 0:
            del waiting[need]
    return grants


def scheduler_host(hosts: Sequence[Host], pool: str) -> Host | None:
    """Return where to open a scheduler that has no worker yet: where most is free."""
    able = [host for host in hosts if host.pool == pool]
    return max(able, key=lambda host: (host.free, host.agent)) if able else None


def impossible(pool: str, size: Size, hosts: Sequence[Host], *, job_share: float = 0.0) -> str | None:
    """Say why no agent of the pool, however free, could ever hold a worker; ``None`` if one could, or none is there."""
    able = [host for host in hosts if host.pool == pool]
    if not able:
        return None
    threads = size.threads
    largest = max(host.slots for host in able)
    if threads > largest:
        return (
            f"a worker of {threads} threads fits on no agent of pool {pool!r}: the largest has {largest}"
            f" slot{'s' * (largest != 1)}; ask for at most {largest} threads per worker"
        )
    if all(host.slots_for(size) > host.slots for host in able):
        most = max(host.memory_bytes for host in able)
        return (
            f"a worker with {_gib(size.memory_bytes)} of memory fits on no agent of pool {pool!r}: the largest has"
            f" {_gib(most)} for all its worker processes; ask for a smaller memory_limit"
        )
    names = declared_names(able, pool)
    if not any(host.could_fit(size, names) for host in able):
        wanted = amounts_text((name, amount) for name, amount in size.resources if name in names)
        there = "; ".join(sorted({amounts_text(sorted(host.declared.items())) or "none" for host in able}))
        return f"a worker with the resources {wanted} fits on no agent of pool {pool!r}: they declare {there}"
    slots = sum(host.slots for host in able)
    kept = kept_for_jobs(slots, job_share)
    if min(host.slots_for(size) for host in able) > slots - kept:
        return (
            f"a worker of {threads} threads does not fit in pool {pool!r}: of its {slots} slots, {kept} are kept for jobs;"
            f" ask for at most {slots - kept} threads per worker, or lower the server's setting job_share"
        )
    return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def width_to_workers(width: int, threads: int, *, free: int) -> int:
    """Return how many workers a graph that can keep `width` threads busy is worth, of what is free, and at least one.

    A width of 0 is unknown: a function that asks for a client before it has a graph. It gets what is free.
    """
    useful = -(-width // threads) if width > 0 else free // threads
    return max(1, min(useful, free // threads))
