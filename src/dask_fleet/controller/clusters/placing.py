"""Which worker of which cluster gets slots on which agent: pure functions over what is free.

Fair order: round robin over users, then first come, first served. Every waiting cluster gets its first worker before any
other grows. A cluster whose first worker fits nowhere yet gets a *promise*: the slots of one agent are kept from jobs until
enough of them are free, so that a worker of many threads does not starve behind many small jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SMALL_POOL_SLOTS = 4
Owner = tuple[str, str]
"""Tenant and user."""


class Host:
    """An agent, as far as placing is concerned; `free` shrinks as slots are given out."""

    __slots__ = ("agent", "free", "nthreads", "pool", "slots")

    def __init__(self, agent: str, *, pool: str, slots: int, nthreads: int, free: int) -> None:
        self.agent = agent
        self.pool = pool
        self.slots = slots
        self.nthreads = nthreads
        self.free = free


class Need(NamedTuple):
    """What one cluster still lacks."""

    cluster_id: str
    owner: Owner
    pool: str
    threads: int
    """Slots of each worker."""
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


def _take_room(need: Need, rooms: Rooms) -> None:
    if need.is_users and need.pool in rooms:
        rooms[need.pool] -= need.threads


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


def best_host(hosts: Sequence[Host], need: Need, *, threads: int) -> Host | None:
    """Return where a worker of so many threads fits now: beside its scheduler if it can, else where most is free."""
    fitting = [host for host in hosts if host.pool == need.pool and host.free >= threads]
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
        host = best_host(hosts, need, threads=need.threads)
        if host is not None:
            host.free -= need.threads
            _take_room(need, rooms)
            turns.take(need.owner)
            grants.append(Grant(need.cluster_id, host.agent))
        elif promise is None:
            able = [host for host in hosts if host.pool == need.pool and host.slots >= need.threads]
            if able:
                kept = max(able, key=lambda host: (host.free, host.agent == need.near, host.agent))
                kept.free -= need.threads  # nobody behind it in the line may take them
                promise = need, kept
    return grants, promise


def growth(needs: Sequence[Need], hosts: Sequence[Host], turns: Turns, rooms: Rooms | None = None) -> list[Grant]:
    """Give further workers, one a turn, in fair order, as far as slots reach, and `rooms`, which become smaller."""
    grants: list[Grant] = []
    rooms = {} if rooms is None else rooms
    waiting = {need: need.missing for need in needs if need.missing > 0}
    while waiting:
        need = min(waiting, key=turns.rank)
        host = best_host(hosts, need, threads=need.threads) if has_room(need, rooms) else None
        if host is None:
            del waiting[need]
            continue
        host.free -= need.threads
        _take_room(need, rooms)
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


def impossible(pool: str, threads: int, hosts: Sequence[Host], *, job_share: float = 0.0) -> str | None:
    """Say why no agent of the pool, however free, could ever hold a worker; ``None`` if one could, or none is there."""
    able = [host for host in hosts if host.pool == pool]
    largest = max((host.slots for host in able), default=0)
    if able and threads > largest:
        return (
            f"a worker of {threads} threads fits on no agent of pool {pool!r}: the largest has {largest}"
            f" slot{'s' * (largest != 1)}; ask for at most {largest} threads per worker"
        )
    slots = sum(host.slots for host in able)
    kept = kept_for_jobs(slots, job_share)
    if able and threads > slots - kept:
        return (
            f"a worker of {threads} threads does not fit in pool {pool!r}: of its {slots} slots, {kept} are kept for jobs;"
            f" ask for at most {slots - kept} threads per worker, or lower the server's setting job_share"
        )
    return None


def width_to_workers(width: int, threads: int, *, free: int) -> int:
    """Return how many workers a graph that can keep `width` threads busy is worth, of what is free, and at least one.

    A width of 0 is unknown: a function that asks for a client before it has a graph. It gets what is free.
    """
    useful = -(-width // threads) if width > 0 else free // threads
    return max(1, min(useful, free // threads))
