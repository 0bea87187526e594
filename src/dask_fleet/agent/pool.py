"""The threads of a worker process: a fixed number of places, which a waiting thread can leave for a while.

``distributed.threadpoolexecutor`` has the same idea (`secede`, `rejoin`); on the hot path it costs a ``Future`` and a
polling queue a call (figures in docs/decisions/0006). This one hands calls over by a ``SimpleQueue``.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Call = Callable[[], object]


class _Return:
    """A thread that had left wants a place again; whichever thread takes this from the queue gives it its own."""

    __slots__ = ("granted",)

    def __init__(self) -> None:
        self.granted = threading.Event()


class PlacePool(Executor):
    """`nthreads` places. At most that many of its threads run at any moment; those that left do not count.

    As an ``Executor`` it serves Dask's threaded scheduler (``submit`` keeps the caller's context variables).
    """

    def __init__(self, nthreads: int, *, name: str = "job") -> None:
        self._max_workers = nthreads  # the name Dask's threaded scheduler reads
        self._name = name
        self._numbers = itertools.count()
        self._queue: SimpleQueue[Call | _Return] = SimpleQueue()
        self._here = threading.local()
        for _ in range(nthreads):
            self._add_thread()

    @property
    def nthreads(self) -> int:
        """Number of places."""
        return self._max_workers

    def run(self, call: Call) -> None:
        """Let a place do `call`, which must not raise. The hot path: no future."""
        self._queue.put(call)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Let a place call `fn` within a copy of the caller's context."""
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(fn, *args, **kwargs))
            except BaseException as exc:  # noqa: BLE001 - it belongs to whoever holds the future
                future.set_exception(exc)

        self._queue.put(call)
        return future

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave the pool while the block waits for work of this same pool, then come back.

        A thread that waited for its own pool in its place would deadlock as soon as all places wait. A thread that is not of
        the pool may have been started by a function that waits for it in its place: for as long as the block runs, there is
        one place more.
        """
        if getattr(self._here, "left", False):
            yield  # it counts for none already
            return
        if not getattr(self._here, "inside", False):
            self._add_thread()
            try:
                yield
            finally:
                self._queue.put(_Return())
            return
        self._here.inside = False
        self._add_thread()
        try:
            yield
        finally:
            ticket = _Return()
            self._queue.put(ticket)
            ticket.granted.wait()
            self._here.inside = True

    def leave(self) -> None:
        """Give the calling thread's place away for good: the thread ends with the call it is in. Twice is harmless."""
        if getattr(self._here, "inside", False):
            self._here.inside, self._here.left = False, True
            self._add_thread()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: the places live as long as their process, whoever borrowed them as an executor."""

    def _add_thread(self) -> None:
        # Daemons: a worker process is told to end, and then nobody waits for user code.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{next(self._numbers)}", daemon=True)
        contextvars.Context().run(thread.start)  # of no job, though one may ask for it

    def _work(self) -> None:
        self._here.inside = True
        take = self._queue.get
        while True:
            call = take()
            if isinstance(call, _Return):
                call.granted.set()
                return
            try:
                call()
            except BaseException:
                log.exception("a call in the pool raised")
            if not self._here.inside:
                return  # it gave its place away
            del call  # a finished job's values must not live until the next call
