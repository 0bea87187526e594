"""The threads of a worker process, shared by the Dask workers in it.

The threads are the places of the process's `PlacePool`, which jobs use as well: a place more for one is a place less for the
others, whoever they are. Each Dask worker gets a view. A free place goes to the views in turn, so that a worker with ten
thousand tasks waiting delays another one by one task, not by ten thousand.

Dask finds out about an executor in two ways that a view has to know:

* ``Worker`` treats it as threads if the name of its class contains ``ThreadPoolExecutor``; else ``get_worker`` and P2P
  shuffles fail inside tasks.
* ``secede`` and ``rejoin`` reach into the executor of the running thread. `_Seat` is what they find there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from dask_fleet.agent.pool import PlacePool

T = TypeVar("T")


class _Item:
    """A task that waits for a place."""

    __slots__ = ("call", "future")

    def __init__(self, future: Future[Any], call: Callable[[], Any]) -> None:
        self.future, self.call = future, call


class FairThreadPoolExecutor(Executor):
    """The view of one Dask worker: at most `limit` tasks of it hold a place at a time. Made by `FairPool.view`."""

    def __init__(self, pool: FairPool, limit: int) -> None:
        self._max_workers = limit  # the name Dask's schedulers read
        self._pool = pool
        self._waiting: deque[_Item] = deque()
        self._returning: deque[threading.Event] = deque()
        self._posted = 0
        """Turns in the pool's queue on our behalf."""
        self._running = 0
        """Tasks that hold a place."""
        self._away = 0
        """Tasks that have seceded: they have a thread, but no place."""
        self._replaced = 0
        """Tasks in a place for which the pool was given another one."""
        self._closed = False
        self._on_idle: Callable[[], None] | None = None

    @property
    def busy(self) -> int:
        """Threads that tasks hold, those of seceded tasks included."""
        return self._running + self._away

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call ``fn`` when it is our turn.

        Raises
        ------
        RuntimeError
            If the view is closed.
        """
        future: Future[T] = Future()
        self._pool._submit(self, _Item(future, lambda: fn(*args, **kwargs)))  # noqa: SLF001
        return future

    def close(self, on_idle: Callable[[], None]) -> None:
        """Cancel what waits; call `on_idle` once the last task has ended, from whichever thread that is."""
        self._pool._close(self, on_idle)  # noqa: SLF001

    def replace(self) -> None:
        """Give the process another place for each that our tasks hold, until they end. The view is closed."""
        self._pool._replace(self)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: Dask shuts down the executor of a worker that closes, but the threads are everyone's."""


class FairPool:
    """Gives the places of `places` to the views in turn."""

    def __init__(self, places: PlacePool) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._turns: deque[FairThreadPoolExecutor] = deque()
        """Views with a turn in the places' queue, in the order in which they are served; each at most once."""

    def view(self, limit: int) -> FairThreadPoolExecutor:
        """Return an executor for one Dask worker with `limit` threads."""
        return FairThreadPoolExecutor(self, limit)

    # ------------------------------------------------------------------ the books, under the lock

    def _submit(self, view: FairThreadPoolExecutor, item: _Item) -> None:
        with self._lock:
            if view._closed:  # noqa: SLF001
                raise RuntimeError("this Dask worker has left its cluster")
            view._waiting.append(item)  # noqa: SLF001
            self._post(view)

    def _post(self, view: FairThreadPoolExecutor) -> None:
        """Ask for a place if a task waits that may have one."""
        if len(view._waiting) > view._posted and view._running + view._posted < view._max_workers:  # noqa: SLF001
            if not view._posted:  # noqa: SLF001
                self._turns.append(view)
            view._posted += 1  # noqa: SLF001
            self._places.run(self._turn)

    def _turn(self) -> None:
        """In a place: run one task of the view whose turn it is."""
        with self._lock:
            view = self._turns.popleft()
            view._posted -= 1  # noqa: SLF001
            if view._posted:  # noqa: SLF001
                self._turns.append(view)
            item = None
            while view._waiting:  # noqa: SLF001
                item = view._waiting.popleft()  # noqa: SLF001
                if item.future.set_running_or_notify_cancel():
                    break
                item = None
            if item is None:
                return
            view._running += 1  # noqa: SLF001
        _run(item, _Seat(self, view))

    def _leave(self, view: FairThreadPoolExecutor) -> None:
        with self._lock:
            view._running -= 1  # noqa: SLF001
            view._away += 1  # noqa: SLF001
            self._freed(view)
            if view._replaced:  # noqa: SLF001
                self._take_back(view)

    def _return(self, view: FairThreadPoolExecutor) -> None:
        """Wait until the view may have one more task in a place, and count it."""
        granted = threading.Event()
        with self._lock:
            if view._running < view._max_workers:  # noqa: SLF001
                view._running += 1  # noqa: SLF001
                view._away -= 1  # noqa: SLF001
                return
            view._returning.append(granted)  # noqa: SLF001
        granted.wait()

    def _end(self, view: FairThreadPoolExecutor, *, away: bool) -> None:
        with self._lock:
            if away:
                view._away -= 1  # noqa: SLF001
            else:
                view._running -= 1  # noqa: SLF001
                self._freed(view)
                if view._replaced:  # noqa: SLF001
                    self._take_back(view)
            on_idle = self._idle_callback(view)
        if on_idle is not None:
            on_idle()

    def _freed(self, view: FairThreadPoolExecutor) -> None:
        """Let the next one in: first who was here before."""
        if view._returning and view._running < view._max_workers:  # noqa: SLF001
            view._running += 1  # noqa: SLF001
            view._away -= 1  # noqa: SLF001
            view._returning.popleft().set()  # noqa: SLF001
        else:
            self._post(view)

    def _close(self, view: FairThreadPoolExecutor, on_idle: Callable[[], None]) -> None:
        with self._lock:
            view._closed = True  # noqa: SLF001
            view._on_idle = on_idle  # noqa: SLF001
            waiting, view._waiting = view._waiting, deque()  # noqa: SLF001
            idle = self._idle_callback(view)
        for item in waiting:
            item.future.cancel()
        if idle is not None:
            idle()

    def _replace(self, view: FairThreadPoolExecutor) -> None:
        with self._lock:
            more = view._running - view._replaced  # noqa: SLF001
            view._replaced = view._running  # noqa: SLF001
        self._places.grow(more)

    def _take_back(self, view: FairThreadPoolExecutor) -> None:
        """Whichever of the view's tasks has left its place: there is one too many now."""
        view._replaced -= 1  # noqa: SLF001
        self._places.shrink()

    @staticmethod
    def _idle_callback(view: FairThreadPoolExecutor) -> Callable[[], None] | None:
        """Return what is to be called now, without the lock, if the view has become idle for good."""
        if not view._closed or view.busy:  # noqa: SLF001
            return None
        on_idle, view._on_idle = view._on_idle, None  # noqa: SLF001
        return on_idle


class _Seat:
    """What ``distributed.secede`` and ``rejoin`` find as the executor of a running task, shaped as they reach into it."""

    def __init__(self, pool: FairPool, view: FairThreadPoolExecutor) -> None:
        self._pool, self._view = pool, view
        self._outside: AbstractContextManager[None] | None = None
        self._threads = self
        self._rejoin_lock = nullcontext()
        self._rejoin_list = self

    def remove(self, thread: threading.Thread) -> None:
        """``executor._threads.remove``: the thread gives its place away."""
        if self._outside is not None:
            raise KeyError(thread)  # it has seceded already; what a set would say, and what Dask expects
        self._outside = self._pool._places.outside()  # noqa: SLF001
        self._outside.__enter__()
        self._pool._leave(self._view)  # noqa: SLF001

    def append(self, entry: tuple[threading.Thread, threading.Event]) -> None:
        """``executor._rejoin_list.append``: wait for a place, which Dask does next by waiting for the event."""
        if self._outside is not None:
            self._pool._return(self._view)  # noqa: SLF001
            outside, self._outside = self._outside, None
            outside.__exit__(None, None, None)
        entry[1].set()

    def submit(self, fn: Callable[[], Any]) -> None:
        """``executor.submit``: Dask wakes a thread up with it that would take notice of the one that wants to rejoin."""

    def _adjust_thread_count(self) -> None:
        """Do nothing: the place has a new thread already."""

    def end(self) -> None:
        """Count the task as ended."""
        self._pool._end(self._view, away=self._outside is not None)  # noqa: SLF001

    def come_back(self) -> None:
        """Give the thread a place again if it left its own, which may take until one is free."""
        if self._outside is not None:
            self._outside.__exit__(None, None, None)


def _run(item: _Item, seat: _Seat) -> None:
    from distributed.threadpoolexecutor import thread_state

    thread_state.proceed, thread_state.executor = True, seat
    try:
        try:
            result = item.call()
        except BaseException as exc:  # noqa: BLE001 - it belongs to whoever holds the future
            seat.end()  # first: whoever sees the outcome must see that the thread is free
            item.future.set_exception(exc)
        else:
            seat.end()
            item.future.set_result(result)
            del result
    finally:
        del thread_state.proceed, thread_state.executor
        del item  # a finished task's values must not live until the thread has a place again
        seat.come_back()
