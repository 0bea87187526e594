"""The event loop of a worker process, for endpoint functions that are ``async``. Started by the first of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoopThread:
    """An asyncio loop in a daemon thread. While a function awaits, it holds no thread of the pool."""

    def __init__(self, name: str = "event-loop") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(
        self,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context,
        *,
        name: str,
        done: Callable[[asyncio.Task[Any]], None],
    ) -> Callable[[], None]:
        """Run `coroutine` in `context`; `done` is called on the loop's thread and must not block it.

        Returns a function that cancels it, callable from any thread.
        """
        loop = self._ensure()
        started: list[asyncio.Task[Any]] = []
        cancelled = False

        def begin() -> None:
            task = loop.create_task(coroutine, name=name, context=context)
            started.append(task)
            self._tasks.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(done)
            if cancelled:
                task.cancel()

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in started])

        loop.call_soon_threadsafe(begin)
        return cancel

    def submit(
        self, coroutine: Coroutine[Any, Any, T], context: contextvars.Context, *, name: str
    ) -> concurrent.futures.Future[T]:
        """Run `coroutine` in `context` and let another thread wait for it."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def done(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                future.cancel()
            elif (exc := task.exception()) is not None:
                future.set_exception(exc)
            else:
                future.set_result(task.result())

        self.run(coroutine, context, name=name, done=done)
        return future

    def _ensure(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
                contextvars.Context().run(thread.start)  # of no job, though the first one asks for it
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # asyncio lets these two out of a task through the loop. The task keeps them as its outcome; the loop goes on.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
