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


class _Thread:
    """What the pool knows of one of its threads. Read and changed under its lock: others may give its place away."""

    __slots__ = ("calls", "is_out", "left", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        """How many it has done: which one a `Stay` was of."""
        self.is_out = False
        """It waits outside, and another thread has its place until it comes back."""
        self.left = False
        """It has no place any more and ends with the call it is in."""

    def next_call(self) -> bool:
        """A call has ended; whether the thread may take another one."""
        with self.lock:
            self.calls += 1
            return not self.left

    def take_place(self) -> bool:
        """Another thread has given its place to this one, which waited outside; whether it may have one yet."""
        with self.lock:
            self.is_out = self.left
            return not self.left


Stay = tuple[_Thread, int]
"""One call of one thread of a pool: what can be given away from elsewhere, but only while that call runs."""


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
        me: _Thread | None = getattr(self._here, "me", None)
        if me is None:
            self._add_thread()
            try:
                yield
            finally:
                self._queue.put(_Return())
            return
        with me.lock:
            goes = not (me.left or me.is_out)
            me.is_out = me.is_out or goes
        if not goes:
            yield  # it counts for none already
            return
        self._add_thread()
        try:
            yield
        finally:
            self._come_back(me)

    def _come_back(self, me: _Thread) -> None:
        """Wait for a place, unless the thread's own was given away for good meanwhile."""
        if me.left:
            return
        ticket = _Return()
        self._queue.put(ticket)
        ticket.granted.wait()
        if not me.take_place():
            self._add_thread()  # what was granted is not needed any more

    def stay(self) -> Stay | None:
        """Return the call that the calling thread is in, for `leave`; ``None`` if it is no thread of the pool."""
        me: _Thread | None = getattr(self._here, "me", None)
        return None if me is None else (me, me.calls)

    def leave(self, stay: Stay | None = None) -> None:
        """Give a place away for good: the thread ends with the call it is in.

        It is the calling thread's place, or that of the call `stay`, from whichever thread. Harmless if the place was given
        away before, if that call has ended, and on a thread that has no place.
        """
        stay = stay or self.stay()
        if stay is None:
            return
        me, call = stay
        with me.lock:
            if me.left or me.calls != call:
                return
            me.left = True
            replaced = me.is_out
        if not replaced:
            self._add_thread()

    def grow(self, places: int) -> None:
        """Add places, as many as there are threads of which nobody knows when they will be free."""
        for _ in range(places):
            self._add_thread()

    def shrink(self) -> None:
        """Take a place away that was added; whichever thread is free next ends."""
        self._queue.put(_Return())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: the places live as long as their process, whoever borrowed them as an executor."""

    def _add_thread(self) -> None:
        # Daemons: a worker process is told to end, and then nobody waits for user code.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{next(self._numbers)}", daemon=True)
        contextvars.Context().run(thread.start)  # of no job, though one may ask for it

    def _work(self) -> None:
        me = self._here.me = _Thread()
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
            if not me.next_call():
                return  # it gave its place away
            del call  # a finished job's values must not live until the next call
