"""Many at once, but not too many: bounded concurrency for submitting and for waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

CONCURRENCY = 32
"""Requests of one call that are under way at once: enough to fill a group commit, few enough for one connection pool."""
TASK_PREFIX = "fleet client: "
"""Begins the names of the SDK's own tasks, so that closing a client finds those whose caller has gone."""
LONG_WAIT_S = 50.0
SHORT_WAIT_S = 1.0

T = TypeVar("T")
R = TypeVar("R")


async def bounded_map(function: Callable[[T], Awaitable[R]], items: Iterable[T], limit: int = CONCURRENCY) -> list[R]:
    """Return the results of `function` over `items` in their order, at most `limit` under way.

    The first exception cancels the rest and is raised as it is. `items` is read as it is needed.
    """
    results: dict[int, R] = {}
    feed = enumerate(items)

    async def work() -> None:
        for index, item in feed:
            results[index] = await function(item)

    tasks = [asyncio.create_task(work(), name=f"{TASK_PREFIX}fan out {number}") for number in range(limit)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)
    return [results[index] for index in range(len(results))]


async def in_completion_order(
    jobs: Iterable[T], poll: Callable[[T, float], Awaitable[bool]], limit: int = CONCURRENCY
) -> AsyncIterator[T]:
    """Yield each of `jobs` when `poll` says that it is done.

    `poll` is given a job and the longest time to wait for it. With more jobs than pollers, each is waited for only shortly
    and then takes its turn again at the end: one slow job must not hide that others are done.
    """
    ring = deque(jobs)
    if not ring:
        return
    finished: asyncio.Queue[tuple[T, Exception | None]] = asyncio.Queue()
    left = len(ring)
    pollers = min(limit, left)

    async def work() -> None:
        nonlocal left
        while ring:
            job = ring.popleft()
            try:
                done = await poll(job, LONG_WAIT_S if left <= pollers else SHORT_WAIT_S)
            except Exception as exc:  # noqa: BLE001 - carried to the caller, who raises it
                await finished.put((job, exc))
                return
            if done:
                left -= 1
                await finished.put((job, None))
            else:
                ring.append(job)

    expected = left
    tasks = [asyncio.create_task(work(), name=f"{TASK_PREFIX}completion {number}") for number in range(pollers)]
    try:
        for _ in range(expected):
            job, error = await finished.get()
            if error is not None:
                raise error
            yield job
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    held = list(tasks)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
