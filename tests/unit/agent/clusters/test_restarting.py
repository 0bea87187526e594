"""Restarts of workers, seen by the scheduler."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Status
from distributed.scheduler import WorkerState

from dask_fleet.agent.clusters.restarting import restart_workers

ADDRESS = "tls://127.0.0.1:34567"


def worker(server_id: str) -> WorkerState:
    return WorkerState(
        address=ADDRESS, status=Status.running, pid=1, name="1", nthreads=1, memory_limit=0, local_directory="",
        nanny=None, server_id=server_id, services={}, versions={}, extra={}, scheduler=None,
    )  # fmt: skip


class Scheduler:
    """What a restart needs of one."""

    connection_args: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.workers = {ADDRESS: worker("the old one")}

    async def remove_worker(self, address: str, **_: Any) -> None:
        del self.workers[address]

    def log_event(self, *_: Any) -> None:
        pass


async def restart(scheduler: Any, *successors: WorkerState) -> None:
    """Restart the worker; its successors come one after the other."""
    coming = iter(successors)

    def come(*_: object) -> None:
        if (successor := next(coming, None)) is not None:
            scheduler.workers[ADDRESS] = successor
            asyncio.get_running_loop().call_later(0.2, come)

    answer = await restart_workers(
        scheduler, None, replace=come, client=None, timeout_s=60, wait_for_workers=True, on_error="raise",
        stimulus_id="a test",
    )  # fmt: skip
    assert answer == {ADDRESS: "OK"}


def test_a_fresh_worker_may_have_the_port_of_the_one_before() -> None:
    """Ports are given anew: once in some thousand restarts, the end of the new one was waited for until the time-out."""
    scheduler, successor = Scheduler(), worker("the new one")
    asyncio.run(restart(scheduler, successor))
    assert scheduler.workers == {ADDRESS: successor}


def test_one_that_comes_back_is_no_fresh_one() -> None:
    scheduler, successor = Scheduler(), worker("the new one")
    asyncio.run(restart(scheduler, worker("the old one"), successor))
    assert scheduler.workers[ADDRESS] is successor
