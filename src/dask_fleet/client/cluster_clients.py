"""What a cluster does for the clients that were made for it: lets them send sooner, and takes them to another scheduler.

Dask has no interface for either. Everything here does without what it does not find.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from distributed import Client
from distributed.core import Status

if TYPE_CHECKING:
    from dask_fleet.client.cluster import FleetCluster

log = logging.getLogger(__name__)

SEND_INTERVAL_S = 0.002
"""Least time between two messages of a client to its scheduler: what Dask's schedulers take for theirs to clients. Dask's
clients take 10 ms, which is a quarter of the time to a first result from a spare cluster, and the larger part of the time of
a task that is waited for before the next one is sent."""
CONNECT_S = 10.0
_LOOK_S = 0.001
_AT_MOST_S = 10.0


async def quicken(cluster_ref: weakref.ref[FleetCluster]) -> None:
    """Let the client that is being made send every `SEND_INTERVAL_S`; ends when it does, or after some seconds.

    Nothing tells when a client has connected, so it is looked for: for the few milliseconds that this takes.
    """
    until = time.monotonic() + _AT_MOST_S
    look_s = _LOOK_S
    while (cluster := cluster_ref()) is not None and cluster.status == Status.running and time.monotonic() < until:
        if any(_sends_sooner(client.scheduler_comm) for client in clients_of(cluster)):
            return
        del cluster
        await asyncio.sleep(look_s)
        look_s = min(0.1, look_s * 1.1)


def _sends_sooner(batched: Any) -> bool:
    """Shorten the time between two messages; whether that is news."""
    if getattr(batched, "interval", 0.0) <= SEND_INTERVAL_S:
        return False
    batched.interval = SEND_INTERVAL_S
    batched.next_deadline = None
    batched.waker.set()  # it may be waiting for the end of the longer time
    return True


def clients_of(cluster: FleetCluster) -> list[Any]:
    """Return the clients that were made for `cluster` and are open."""
    try:
        every = list(Client._instances)  # noqa: SLF001 - Dask has no other way to a cluster's clients
    except RuntimeError:  # another thread has just made one
        return []
    return [client for client in every if client.cluster is cluster and client.status not in ("closed", "closing")]


async def move_clients(cluster: FleetCluster, address: str) -> None:
    """Connect the clients of `cluster` to its new scheduler.

    Left to themselves they would try the old address until their time-out and close. Their futures are cancelled, as with
    any scheduler that is lost; what is submitted from now on runs.
    """
    for client in clients_of(cluster):
        if client.loop is not cluster.loop or client.scheduler is None:
            continue  # without a scheduler it waits for the cluster, and asks it where to go
        try:
            async with asyncio.timeout(CONNECT_S * 2):
                await _move(client, address)
        except Exception as exc:  # noqa: BLE001 - a client of another version of Dask goes its own way, and says so itself
            log.warning("a client did not follow its cluster to %s: %r; make a new one", address, exc)


@contextlib.contextmanager
def _unlogged_cancellation() -> Iterator[None]:
    """Keep Dask from logging the end of a client's vain attempts to reconnect as an error, with a traceback."""

    def other(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))

    logger = logging.getLogger("distributed.client")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


async def _move(client: Any, address: str) -> None:
    task = client._handle_report_task  # noqa: SLF001
    if task is not None:
        with _unlogged_cancellation():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    for state in list(client.futures.values()):
        state.cancel(reason="scheduler-connection-lost", msg="The scheduler was lost and another one has taken its place.")
    client.futures.clear()
    client.status = "connecting"
    client.scheduler_comm = None
    client.scheduler = client.rpc(address)
    await client._ensure_connected(timeout=CONNECT_S)  # noqa: SLF001
    _sends_sooner(client.scheduler_comm)
    client._handle_report_task = asyncio.create_task(client._handle_report(), name="client-report")  # noqa: SLF001
