"""What a cluster waits for, in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dask_fleet.controller.clusters.book import Book, Entry
from dask_fleet.controller.clusters.capacity import Host, amounts_text, declared_names, size_of
from dask_fleet.controller.clusters.placing import kept_for_jobs
from dask_fleet.model.cluster_states import ClusterState


def waiting_for(entry: Entry, hosts: Sequence[Host], book: Book, *, draining: bool, job_share: float = 0.0) -> str | None:
    """Say what a cluster waits for; ``None`` if it has all that was asked for, or has ended."""
    record = entry.record
    if record.state is ClusterState.CLOSING:
        return f"its last {len(entry.held)} workers to leave" if entry.held else "its scheduler to end"
    if record.state.is_terminal or not entry.is_wanted:
        return None
    if draining:
        return "the server to be started again: it is shutting down"
    missing = record.spec.n_workers - len(entry.live)
    if record.state is ClusterState.STARTING:
        return f"its scheduler to start on agent {record.agent}"
    if missing <= 0:
        joining = sum(not held.joined for held in entry.live)
        return f"{_workers(joining)} to join" if joining else None
    if entry.stillborn:
        return f"{_workers(missing)} to be started again, the last one could not: {entry.stillborn_why}"
    return _slots(entry, missing, [host for host in hosts if host.pool == record.spec.pool], book, job_share)


def _slots(entry: Entry, missing: int, hosts: Sequence[Host], book: Book, job_share: float) -> str:
    spec = entry.record.spec
    if not hosts:
        return f"an agent of pool {spec.pool!r}: none is connected"
    slots = sum(host.slots for host in hosts)
    size, names = size_of(spec), declared_names(hosts, spec.pool)
    scarce = amounts_text((name, amount) for name, amount in size.resources if name in names)
    each = max(min(host.slots_for(size) for host in hosts), 1)
    what = (
        f"slots for {_workers(missing)}"
        + (f" of {each} each" if each > 1 else "")
        + (", for their memory" if each > size.threads else "")
        + (f", each with {scarce}" if scarce else "")
    )
    kept = kept_for_jobs(slots, job_share)
    fits = min(sum(host.most(size, names) for host in hosts), (slots - kept) // each)
    for_jobs = f", {kept} of them kept for jobs" if kept else ""
    if spec.n_workers > fits:
        return (
            f"{what}: pool {spec.pool!r} has {slots} slots{for_jobs}, room for {fits} of the {spec.n_workers}"
            " workers that are wanted; add agents, or scale the cluster down"
        )
    lent = sum(book.taken(host.agent) for host in hosts)
    others = sum(
        other is not entry and other.is_wanted and not other.live and other.record.spec.n_workers > 0 for other in book
    )
    behind = f"; clusters that wait for their first worker: {others} more" if others else ""
    pool = f"of the {slots} slots of pool {spec.pool!r}{for_jobs}"
    return f"{what}: {pool}, {lent} are lent to clusters, the rest to jobs{behind}"


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"
