"""An event loop in a thread of its own, so that synchronous code, notebooks included, can use asynchronous code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

from dask_fleet.client.async_job import Report
from dask_fleet.client.fan_out import TASK_PREFIX

log = logging.getLogger(__name__)

T = TypeVar("T")
_STOP_S = 5.0


class BackgroundLoop:
    """Runs coroutines for other threads until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._running: set[Coroutine[Any, Any, Any]] = set()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return its result; Ctrl-C cancels it.

        Raises
        ------
        RuntimeError
            If the loop is closed, belongs to the process this one was forked from, or is the caller's own.
        """
        future = self._submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def run_reported(self, work: Callable[[Report], Coroutine[Any, Any, T]], show: Report) -> T:
        """Run a coroutine that reports progress, calling `show` in *this* thread: notebooks draw only for their own."""
        reports: queue.SimpleQueue[tuple[float, float | None, str] | None] = queue.SimpleQueue()

        def report(done: float, total: float | None, text: str) -> None:
            reports.put((done, total, text))

        future = self._submit(work(report))
        future.add_done_callback(lambda _: reports.put(None))
        try:
            while (told := reports.get()) is not None:
                show(*told)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an asynchronous iterator gives; it is closed when this generator is."""
        try:
            while True:
                try:
                    yield self.run(_next(source))
                except StopAsyncIteration:
                    return
        finally:
            if isinstance(source, AsyncGenerator) and not self._loop.is_closed():
                self.run(_close(source))

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last`, stop the loop and end the thread. Twice is harmless; in a forked child it does nothing."""
        if self._loop.is_closed() or os.getpid() != self._pid:
            return
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            future = asyncio.run_coroutine_threadsafe(_last(self._running, last), self._loop)
            try:
                future.result(_STOP_S)
            except TimeoutError:  # a server, or this machine, is slow: whoever closes has no use for knowing
                log.debug("closed before everything had ended", extra={"action": "close_timeout"})
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(_STOP_S)

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        refusal = None
        if os.getpid() != self._pid:
            refusal = "this client was made before the process forked; make a new Client in each process"
        elif self._loop.is_closed() or not self._thread.is_alive():
            refusal = "this client is closed; make a new Client"
        elif threading.current_thread() is self._thread:
            refusal = "the client's own thread cannot wait for itself; use AsyncClient in asynchronous code"
        if refusal is not None:
            coroutine.close()
            raise RuntimeError(refusal)
        self._running.add(coroutine)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(lambda _: self._running.discard(coroutine))
        return future


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source)


async def _close(source: AsyncIterator[T]) -> None:
    generator = cast("Any", source)
    async with asyncio.timeout(_STOP_S):
        while generator.ag_running:  # noqa: ASYNC110 - a step that Ctrl-C has just cancelled is ending; nothing tells when
            await asyncio.sleep(0.005)
        await generator.aclose()


async def _last(running: set[Coroutine[Any, Any, Any]], last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # Only our own tasks are cancelled: they end the helpers that libraries made for them, in the way those expect.
    # What was cancelled before may still be ending: it is in no list of ours any more, so all that runs is awaited.
    current = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not current]
    for task in others:
        if task.get_coro() in running or task.get_name().startswith(TASK_PREFIX):
            task.cancel()
    if others:
        await asyncio.wait(others, timeout=_STOP_S / 2)
    await last()
    await asyncio.sleep(0)  # transports close their sockets in the loop's next round
