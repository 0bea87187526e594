"""Which spare clusters there should be, and which request one of them would do for: pure functions.

A spare is a cluster that nobody has asked for yet: its scheduler runs and its fresh workers have joined, so that the next
request it fits is answered at once. One is kept for tenants that asked lately, of the shape they asked for last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from dask_fleet.controller.clusters.capacity import Host, declared_names, size_of
from dask_fleet.controller.clusters.placing import Need
from dask_fleet.model.clusters import ClusterAccess, ClusterSpec

ACTIVE_S = 1_200.0
"""A tenant that has asked for no cluster for so long is not active: as long as an idle cluster lives by default."""
MOST_WORKERS = 4
"""Of one spare: what nobody uses shall not take a large part of a host. A larger cluster gets more as any does."""


class Asked(NamedTuple):
    """What a tenant asked for last in a pool."""

    tenant: str
    spec: ClusterSpec
    at: float
    """By the monotonic clock."""


class Kept(NamedTuple):
    """A spare that there is, or that is on its way."""

    cluster_id: str
    tenant: str
    spec: ClusterSpec
    slots: int = 0
    """That it holds."""


class Room(NamedTuple):
    """What an agent has for spares."""

    host: Host
    takes_jobs: bool
    """Whether it has loaded any service."""

    @property
    def most(self) -> int:
        """Slots that spares may take at all. One stays free where jobs run: a job that comes alone shall not wait."""
        return self.host.slots - self.takes_jobs

    @property
    def free(self) -> int:
        """Slots that they may take now."""
        return self.host.free - self.takes_jobs


def shape_of(spec: ClusterSpec) -> ClusterSpec:
    """Return what cannot be changed any more once its scheduler and workers run; the rest is made neutral.

    Nothing here limits a spare's life: whoever keeps it decides.
    """
    return replace(
        spec, n_workers=0, idle_timeout_s=None, max_lifetime_s=None, shutdown_on_close=True, requested_as="",
        access=ClusterAccess.USER,
    )


def fits(spare: ClusterSpec, wanted: ClusterSpec) -> bool:
    """Whether a spare does for a request. The number of workers may differ: it is scaled when it is handed out."""
    return not wanted.shared and shape_of(spare) == shape_of(wanted)


def wanted_now(asked: Iterable[Asked], *, per_pool: int, now: float) -> list[Asked]:
    """Return for whom to keep spares in one pool: one for each active tenant, who asked last comes first, then seconds."""
    active = sorted((each for each in asked if now - each.at <= ACTIVE_S), key=lambda each: -each.at)
    return [active[number % len(active)] for number in range(per_pool)] if active else []


def compare(wanted: Sequence[Asked], kept: Sequence[Kept]) -> tuple[list[Asked], list[Kept]]:
    """Return what is missing, and what nobody is to get any more."""
    left = list(kept)
    missing = []
    for each in wanted:
        found = next((one for one in left if one.tenant == each.tenant and fits(one.spec, each.spec)), None)
        if found is None:
            missing.append(each)
        else:
            left.remove(found)
    return missing, left


def spec_for(asked: ClusterSpec, rooms: Sequence[Room]) -> ClusterSpec | None:
    """Return what a spare would be like: as asked for, no larger than the pool; ``None`` if not even one worker fits."""
    size = size_of(asked)
    names = declared_names((room.host for room in rooms), asked.pool)
    if any(name in names for name, _ in size.resources):
        return None  # what is scarce is not for who has not asked
    able = sum(max(room.most, 0) // room.host.slots_for(size) for room in rooms)
    n_workers = min(asked.n_workers, MOST_WORKERS, able)
    if n_workers == 0 and asked.n_workers > 0:
        return None
    return replace(shape_of(asked), n_workers=n_workers)


def place(spec: ClusterSpec, rooms: Sequence[Room]) -> list[str] | None:
    """Return the agent of each worker, or ``None`` if they do not all fit now: half a spare would be no faster."""
    free = {room.host.agent: room.free for room in rooms}
    takes = {room.host.agent: room.host.slots_for(size_of(spec)) for room in rooms}
    agents: list[str] = []
    for _ in range(spec.n_workers):
        # Beside each other as far as they go: the first one's agent runs the scheduler.
        able = [name for name, slots in free.items() if slots >= takes[name]]
        if not able:
            return None
        agent = max(able, key=lambda name: (name in agents, free[name], name))
        free[agent] -= takes[agent]
        agents.append(agent)
    return agents


def gives_way(spares: Sequence[Kept], needs: Sequence[Need], free: Mapping[str, int], pools: Mapping[str, str]) -> list[str]:
    """Return the spares whose slots clusters need, of each pool as few as will do.

    Parameters
    ----------
    free
        Free slots of each pool.
    pools
        Pool of each spare, by its cluster's id.
    """
    closing: list[str] = []
    lacking: dict[str, int] = {}
    for need in needs:
        lacking[need.pool] = lacking.get(need.pool, 0) + need.missing * need.threads
    for pool, slots in lacking.items():
        left = slots - max(free.get(pool, 0), 0)
        # One goes in any case: free slots may be split over agents, too few on each for a worker.
        for number, spare in enumerate(spare for spare in spares if pools[spare.cluster_id] == pool):
            if number == 0 or left > 0:
                closing.append(spare.cluster_id)
                left -= spare.slots
    return closing
