"""Restarts of Dask workers, as a cluster's scheduler does them: their nannies are asked, and fresh workers waited for.

A fresh worker may have the address of one that is gone: the kernel gives ports anew. So none is known by its address here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

from distributed import Scheduler
from distributed.core import rpc
from distributed.scheduler import WorkerState

log = logging.getLogger(__name__)

_ANSWER_S = 8.0
"""What a worker may take to let go. One that computes in C without letting go of the interpreter never answers."""
_LOOK_S = 0.05
_LAST_WORD_S = 0.5

Outcome = Literal["OK", "timed out"]


async def restart_workers(
    scheduler: Scheduler,
    workers: Iterable[str] | None,
    *,
    replace: Callable[[list[str]], None],
    client: str | None,
    timeout_s: float,
    wait_for_workers: bool,
    on_error: str,
    stimulus_id: str,
) -> dict[str, Outcome]:
    """Restart workers, all by default; the same contract as that of ``distributed.Scheduler.restart_workers``.

    Dask gives up where a nanny does not answer. Here that is the worker's own process, so one that is dead or deaf is what a
    restart is for.

    Parameters
    ----------
    replace
        Takes the addresses of workers that do not answer, so that their agents end their processes.

    Raises
    ------
    TimeoutError
        If there are fewer workers than before after `timeout_s`, and `on_error` is ``"raise"``.
    """
    deadline = time.monotonic() + timeout_s
    before = len(scheduler.workers)
    there = dict(scheduler.workers)
    chosen = list(there) if workers is None else [address for address in set(workers) if address in there]
    old = [there[address] for address in chosen]
    answered = await asyncio.gather(*(_kill(scheduler, worker, min(timeout_s, _ANSWER_S), stimulus_id) for worker in old))
    deaf = [
        worker.address
        for worker, heard in zip(old, answered, strict=True)
        if not heard and _is_there(scheduler, worker)  # while others were waited for, it may have gone by itself
    ]
    for worker in old:  # one that has ended may not have been able to say so
        if _is_there(scheduler, worker):
            await scheduler.remove_worker(worker.address, stimulus_id=stimulus_id, expected=True)
    if deaf:
        log.warning("workers that do not answer are replaced", extra={"action": "workers_replaced", "workers": len(deaf)})
        replace(deaf)
    event = {"action": "restart-workers", "workers": chosen}
    if client:
        scheduler.log_event(client, event)
    scheduler.log_event("all", event | {"client": client})
    if not wait_for_workers or await until_back(scheduler, old, before, deadline - time.monotonic()):
        return dict.fromkeys(chosen, "OK")
    missing = before - len(scheduler.workers)
    text = (
        f"{missing} of the {len(chosen)} workers that were restarted have not come back after {timeout_s:.0f} s: "
        "give it a longer timeout, or use wait_for_workers=False and Client.wait_for_workers"
    )
    if on_error == "raise":
        raise TimeoutError(text)
    log.error(text)
    back = {str(worker.name) for worker in scheduler.workers.values()}
    return {worker.address: "OK" if str(worker.name) in back else "timed out" for worker in old}


async def until_back(scheduler: Scheduler, old: Collection[WorkerState], workers: int, timeout_s: float) -> bool:
    """Wait until none of the `old` ones is there and there are so many `workers`; whether that is so in time."""
    deadline = time.monotonic() + timeout_s
    while len(scheduler.workers) < workers or any(_is_there(scheduler, worker) for worker in old):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


def _is_there(scheduler: Scheduler, worker: WorkerState) -> bool:
    return bool(scheduler.workers.get(worker.address) == worker)  # of the same server, by Dask's own comparison


async def _kill(scheduler: Scheduler, worker: WorkerState, timeout_s: float, reason: str) -> bool:
    """Ask a worker's nanny to end it; whether that has answered, or the worker is gone all the same."""
    if worker.nanny is None:
        return False
    asking = asyncio.create_task(_ask(scheduler, worker.nanny, reason), name="kill-worker")
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline and not asking.done() and _is_there(scheduler, worker):
            await asyncio.wait([asking], timeout=_LOOK_S)
        # One that goes in good order goes first and answers then. A dead one, which Dask would try to reach, does not.
        await asyncio.wait([asking], timeout=_LAST_WORD_S)
        return not _is_there(scheduler, worker) or (asking.done() and asking.result())
    finally:
        asking.cancel()


async def _ask(scheduler: Scheduler, nanny: str, reason: str) -> bool:
    try:
        connection: Any = rpc(nanny, connection_args=scheduler.connection_args)
        async with connection as asked:
            await asked.kill(reason=reason)
    except OSError as exc:  # a TimeoutError, too
        log.debug("a worker's nanny does not answer: %r", exc)
        return False
    return True
