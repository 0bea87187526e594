"""Lets a cluster that nobody uses yet do once what its first user will, so that the first result does not wait for it.

Processes are forked: whatever they do first, they do with pages to be copied and code that has not run yet, and the
scheduler collects the first result over a connection that has yet to be made. Together that is a third of the time to the
first result of a spare cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from distributed import Client, Scheduler

log = logging.getLogger(__name__)

CLIENT_PREFIX = "Client-dask-fleet-rehearsal-"
_NAME = "dask-fleet-rehearsal"
"""Of its client and tasks: none that a user gives. What has it is not counted, and forgotten."""
_WORKERS = 8
"""With more than that, who takes the cluster has to wait for its tasks rather than for the first of them."""
_PATIENCE_S = 10.0


def is_unused(scheduler: Scheduler) -> bool:
    """Whether nobody sees the cluster but us."""
    return not scheduler.tasks and all(client == "fire-and-forget" for client in scheduler.clients)


def is_wanted(scheduler: Scheduler) -> bool:
    """Whether the cluster is to rehearse. Preloads may count tasks and clients, so it does not with any."""
    return is_unused(scheduler) and 0 < len(scheduler.workers) <= _WORKERS and not scheduler.preloads


async def rehearse(scheduler: Scheduler) -> None:
    """Run one task on each worker, for a client in this process, and forget it. Does not raise.

    A client that comes meanwhile is served as ever.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S), _client(scheduler) as client:
            futures = [
                client.submit(sum, (1, 2), key=f"{_NAME}-{number}", workers=[address], allow_other_workers=True)
                for number, address in enumerate(scheduler.workers)
            ]
            await client.gather(futures)
            for future in futures:
                future.release()
    except Exception as exc:  # noqa: BLE001 - without it all goes on, only slower
        log.debug("no rehearsal: %r", exc)
    _forget(scheduler)


def _client(scheduler: Scheduler) -> Any:
    return Client(
        scheduler.address, name=_NAME, security=scheduler.security, asynchronous=True, set_as_default=False,
        heartbeat_interval=60_000,
    )  # fmt: skip


def _forget(scheduler: Scheduler) -> None:
    """Leave no trace where people look for their own tasks."""
    with contextlib.suppress(Exception):  # other versions keep other books
        scheduler.task_prefixes.pop(_NAME, None)
        for computation in list(scheduler.computations):
            if {group.prefix.name for group in computation.groups} == {_NAME}:
                scheduler.computations.remove(computation)
        for transition in list(scheduler.transition_log):
            if str(transition[0]).startswith(f"{_NAME}-"):
                scheduler.transition_log.remove(transition)
