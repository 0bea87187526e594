"""What one Dask worker takes of an agent: slots, for its threads or its memory, and named resources. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dask_fleet.model.clusters import ClusterSpec


class Size(NamedTuple):
    """What each worker of a cluster is to have."""

    threads: int
    memory_bytes: int = 0
    """0: as much as goes with its threads."""
    resources: tuple[tuple[str, float], ...] = ()


class Host:
    """An agent, as far as placing is concerned; what is free shrinks as it is given out.

    Parameters
    ----------
    memory_bytes
        Of all its worker processes together; 0 if they have no limit.
    resources
        Free amounts of the named resources it declares. A name that it does not declare is only a label, as Dask has it.
    declared
        All of them; by default what is free.
    """

    __slots__ = ("agent", "declared", "free", "memory_bytes", "nthreads", "pool", "resources", "slots")

    def __init__(
        self,
        agent: str,
        *,
        pool: str,
        slots: int,
        nthreads: int,
        free: int,
        memory_bytes: int = 0,
        resources: Mapping[str, float] | None = None,
        declared: Mapping[str, float] | None = None,
    ) -> None:
        self.agent = agent
        self.pool = pool
        self.slots = slots
        self.nthreads = nthreads
        self.free = free
        self.memory_bytes = memory_bytes
        self.resources = dict(resources or {})
        self.declared = dict(self.resources if declared is None else declared)

    def slots_for(self, size: Size) -> int:
        """Return how many slots a worker takes: each slot carries its part of the memory, whoever uses it."""
        if not size.memory_bytes or not self.memory_bytes:
            return size.threads
        return max(size.threads, -(-size.memory_bytes * self.slots // self.memory_bytes))

    def fits(self, size: Size, names: frozenset[str]) -> bool:
        """Whether a worker fits now. `names` are the resources that any agent of the pool declares."""
        return self.free >= self.slots_for(size) and _covers(self.resources, size, names)

    def could_fit(self, size: Size, names: frozenset[str]) -> bool:
        """Whether a worker would fit if nothing else were here."""
        return self.slots >= self.slots_for(size) and _covers(self.declared, size, names)

    def most(self, size: Size, names: frozenset[str]) -> int:
        """Return how many workers it could hold if nothing else were here."""
        amounts = [(self.declared.get(name, 0.0), amount) for name, amount in size.resources if name in names and amount > 0]
        return min([self.slots // self.slots_for(size), *(int(there // amount) for there, amount in amounts)])

    def take(self, size: Size) -> int:
        """Count a worker as placed here; returns the slots it takes."""
        slots = self.slots_for(size)
        self.free -= slots
        for name, amount in size.resources:
            if name in self.resources:
                self.resources[name] -= amount
        return slots


def size_of(spec: ClusterSpec) -> Size:
    """Return the size of each worker of a cluster. Shared processes have the memory they have."""
    return Size(spec.threads_per_worker, spec.memory_limit_bytes or 0, tuple(sorted(spec.resources.items())))


def declared_names(hosts: Iterable[Host], pool: str) -> frozenset[str]:
    """Return the resources that agents of a pool declare, and that are therefore counted there."""
    return frozenset(name for host in hosts if host.pool == pool for name in host.declared)


def amounts_text(amounts: Iterable[tuple[str, float]]) -> str:
    """Return resources for people: ``GPU=1, licence=2``."""
    return ", ".join(f"{name}={amount:g}" for name, amount in amounts)


def _covers(there: Mapping[str, float], size: Size, names: frozenset[str]) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in size.resources if name in names)
