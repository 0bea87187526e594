"""The loop for ``async`` functions outlives what they do."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from typing import Any

from dask_fleet.agent.event_loop import EventLoopThread


def test_a_coroutine_that_leaves_the_interpreter_ends_alone() -> None:
    async def leave() -> None:
        sys.exit(3)

    async def interrupt() -> None:
        raise KeyboardInterrupt

    async def stay() -> int:
        return 1

    thread = EventLoopThread()
    ends: list[asyncio.Task[Any]] = []
    for function in (leave, interrupt, stay):
        ended = threading.Event()

        def done(task: asyncio.Task[Any], ended: threading.Event = ended) -> None:
            ends.append(task)
            ended.set()

        thread.run(function(), contextvars.copy_context(), name="job", done=done)
        assert ended.wait(10), f"{function.__name__} was never reported"
    assert [type(task.exception()) for task in ends] == [SystemExit, KeyboardInterrupt, type(None)]
