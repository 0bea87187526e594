"""Follows the scheduler of a cluster in the background, and finds the cluster again when its scheduler is gone.

Nothing here keeps a cluster alive: between two steps only a weak reference to it is held, so that a cluster which its
program forgets is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

from distributed.comm import connect
from distributed.core import Status
from distributed.objects import SchedulerInfo

from dask_fleet.client.cluster_key import validity_of
from dask_fleet.model.renewal import Renewal

if TYPE_CHECKING:
    from dask_fleet.client.cluster import FleetCluster

log = logging.getLogger(__name__)

FOLLOW_AFTER_S = 0.3
"""The first client's connections go first: on a small machine ours would take a tenth of the time to its first result."""
CONNECT_S = 10.0
_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 5.0
RENEW_STEP_S = 600.0
"""Longest sleep between two looks at the clock: a laptop that was asleep must notice that time has passed."""


async def follow(cluster_ref: weakref.ref[FleetCluster]) -> None:
    """Keep `scheduler_info` up to date until the cluster is closed; when the scheduler is lost, ask what became of it."""
    if (cluster := cluster_ref()) is None:
        return
    wanted = cluster.info_is_wanted
    del cluster
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FOLLOW_AFTER_S):
            await wanted.wait()
    delay = _FIRST_DELAY_S
    while (cluster := cluster_ref()) is not None and cluster.status == Status.running:
        address, arguments = cluster.scheduler_address, cluster.connection_args
        # One that does not answer is probably dead, and the server will know in a moment: it is asked again soon.
        connect_s = min(CONNECT_S, 2 * delay) if cluster.is_lost else CONNECT_S
        del cluster
        try:
            await _subscribe(cluster_ref, address, arguments, connect_s)
        except OSError as exc:  # also of Dask: the connection could not be made, or is broken
            log.debug("lost %s: %r", address, exc)
        cluster = cluster_ref()
        if cluster is None or cluster.status != Status.running:
            return
        cluster.lose_scheduler()
        moved = await cluster.relocate()
        del cluster
        if not moved:
            await asyncio.sleep(delay)
        delay = _FIRST_DELAY_S if moved else min(_MAX_DELAY_S, delay * 2)


async def _subscribe(
    cluster_ref: weakref.ref[FleetCluster], address: str, arguments: dict[str, Any], connect_s: float
) -> None:
    comm, pid = await connect(address, timeout=connect_s, **arguments), os.getpid()
    comm.name = "FleetCluster worker status"
    try:
        await comm.write({"op": "subscribe_worker_status"})
        async with asyncio.timeout(CONNECT_S):
            identity = await comm.read()
        if (cluster := cluster_ref()) is None:
            return
        cluster.learn(SchedulerInfo(identity))
        del cluster
        while True:
            messages = await comm.read()
            if (cluster := cluster_ref()) is None:
                return
            for op, message in messages:
                if op == "remove":
                    cluster.scheduler_info["workers"].pop(message, None)
                else:
                    cluster._update_worker_status(op, message)  # noqa: SLF001 - as Dask's own clusters do
            del cluster
    except TimeoutError as exc:
        raise OSError(f"{address} is silent") from exc
    finally:
        if os.getpid() == pid:  # to a forked child's copy of the loop the parent's connection would be lost
            comm.abort()


async def keep_certificate(cluster_ref: weakref.ref[FleetCluster]) -> None:
    """Renew the certificate when half of the time that it still had when it came has passed, until the cluster is closed."""
    certificate, renewal, is_told = "", Renewal(), False
    while (cluster := cluster_ref()) is not None and cluster.status == Status.running:
        now = time.time()
        if certificate != cluster.security.tls_client_cert:
            certificate = cluster.security.tls_client_cert
            is_of_use = renewal.took(validity_of(certificate)[1], cluster.security.tls_ca_file, now)
            if not (is_of_use or is_told):
                log.warning("cluster %s: %s", cluster.name, renewal.complaint)
            is_told = not is_of_use
        if now >= renewal.due_s:
            renewal.asked(now)
            try:
                await cluster.renew()
            except Exception as exc:  # noqa: BLE001 - the old one holds for a while yet; it is tried again
                log.warning("the certificate of cluster %s is not renewed yet: %s", cluster.name, exc)
            else:
                continue
        del cluster
        await asyncio.sleep(max(0.05, min(RENEW_STEP_S, renewal.due_s - now)))
