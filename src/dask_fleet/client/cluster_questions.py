"""Questions to a cluster's scheduler that end when the scheduler does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SchedulerLost(OSError):
    """The scheduler did not answer, and is gone."""


class Questions:
    """What the scheduler was asked and has not answered yet.

    Left to itself Dask would try to reach a scheduler that is gone for 30 s, while another one is there after two.
    """

    def __init__(self) -> None:
        self._open: set[asyncio.Future[None]] = set()

    async def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Return the answer.

        Raises
        ------
        SchedulerLost
            As soon as `drop` says that there will be none.
        OSError
            If the connection breaks.
        """
        dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(question, name="question to a scheduler")
        task.add_done_callback(_seen)
        self._open.add(dropped)
        try:
            # Not the task alone: Dask's connections do not always end when they are cancelled.
            either: list[asyncio.Future[Any]] = [task, dropped]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(dropped)
            task.cancel()
        if dropped.done() and not task.done():
            raise SchedulerLost("the scheduler was lost before it answered")
        return task.result()

    def drop(self) -> None:
        """Nobody will answer what is open. On the event loop."""
        for dropped in self._open:
            if not dropped.done():
                dropped.set_result(None)


def _seen(task: asyncio.Task[Any]) -> None:
    """Look at the error of a question that nobody waits for any more: unseen it would be logged."""
    if not task.cancelled():
        task.exception()
