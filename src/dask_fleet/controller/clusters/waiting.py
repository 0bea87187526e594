"""What a cluster waits for, in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dask_fleet.controller.clusters.book import Book, Entry
from dask_fleet.controller.clusters.capacity import Host, amounts_text, declared_names, size_of
from dask_fleet.controller.clusters.placing import kept_for_jobs
from dask_fleet.model.cluster_states import ClusterState

_LONG_S = 20.0
"""A worker that joins takes no longer, unless something is in its way."""


def waiting_for(
    entry: Entry, hosts: Sequence[Host], book: Book, *, now: float, draining: bool, job_share: float = 0.0
) -> str | None:
    """Say what a cluster waits for; ``None`` if it has all that was asked for, or has ended.

    Parameters
    ----------
    now
        By the monotonic clock.
    """
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
        comes = _joining(entry, now)
    elif now < entry.setbacks.not_before:
        comes = f"{_workers(missing)} to be started again, the last one could not: {entry.setbacks.why}"
    else:
        comes = _slots(entry, missing, [host for host in hosts if host.pool == record.spec.pool], book, job_share)
        if entry.setbacks.why:
            comes = f"{comes}; the last one that had some could not join: {entry.setbacks.why}"
    return "; and ".join(filter(None, (comes, _leaving(entry)))) or None


def _joining(entry: Entry, now: float) -> str | None:
    joining = [held for held in entry.live if not held.joined]
    if not joining:
        return None
    text = f"{_workers(len(joining))} to join"
    if entry.setbacks.why:
        return f"{text}; the last one could not: {entry.setbacks.why}"
    waits_s = now - min(held.since for held in joining)
    if waits_s < _LONG_S:
        return text
    return f"{text}, for {waits_s:.0f} s now: they still start, or their scheduler is busy or cannot be reached from there"


def _leaving(entry: Entry) -> str | None:
    """Say what keeps workers that are to leave; nothing of those that may, and only end their tasks."""
    leaving = [held for held in entry.retiring if not held.retired]
    if not leaving:
        return None
    text = f"the data of {_workers(len(leaving))} to be moved before {'they leave' if len(leaving) > 1 else 'it leaves'}"
    kept = [held for held in leaving if held.kept]
    if not kept:
        return text
    cure = "release what is not needed any more, scale up again, or close the cluster"
    return f"{text}; worker {kept[0].lease.worker} has to stay for now, {kept[0].kept}: {cure}"


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
