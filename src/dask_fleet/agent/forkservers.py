"""The forkserver of this agent and a second one in waiting: the first may die, and the next fork does not wait for imports.

``multiprocessing`` has one handle of a forkserver a process, so this is process-wide, too. Everything here belongs on the
launcher's one thread.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing import process as processes
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from dask_fleet.agent import forked, standby

log = logging.getLogger(__name__)

_MOST_GENERATIONS = 64
"""Each standby is forked inside its predecessor and stands on its stack: after that many, the next one starts afresh."""
_DEAD_WITHIN_S = 0.25
"""How long a forkserver that hangs up may take to be dead: its descriptors are closed a moment before."""


@dataclass(frozen=True, slots=True)
class _Standby:
    """A forkserver that waits: what ``multiprocessing`` needs to know of one, and how deep its stack is."""

    process: ForkServerProcess | None
    """``None`` for one that was started afresh."""
    pid: int
    address: str
    alive: int
    """Descriptor whose closing ends it."""
    generation: int


_standby: _Standby | None = None
_generation = 0
"""How many standbys stand one in the other, up to the forkserver in use."""


def context() -> multiprocessing.context.ForkServerContext:
    """Return what makes processes that are forked from the forkserver."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(forked.PRELOAD)
    return made


def begin() -> None:
    """Start the forkserver, which imports what it has to in the background. Call it before there is a thread that forks.

    Raises
    ------
    OSError
        If the host has no process left to give.
    """
    context()
    _handle().ensure_running()


def pid() -> int | None:
    """Return the pid of the forkserver, if one was started; it may have died since."""
    found: int | None = _handle()._forkserver_pid  # noqa: SLF001
    return found


def known() -> set[int]:
    """Return the pids of the forkserver and its standby."""
    found = {pid() or 0, _standby.pid if _standby else 0}
    return found - {0}


def start(process: ForkServerProcess) -> None:
    """Fork `process`, from the standby if the forkserver has died, else from a new one.

    Raises
    ------
    OSError, EOFError
        If the forkserver died meanwhile or the host has no process left to give.
    """
    _replace_if_dead()
    for again in (True, True, False):  # the standby may have died with the forkserver
        try:
            _start(process)
            break
        except (OSError, EOFError):
            if not again or not _replace_if_dead(within_s=_DEAD_WITHIN_S):
                raise
    forked.remember(process.pid or 0)


def have_standby() -> None:
    """See to it that a standby waits, if there is a forkserver to fork it from. Whoever has forked calls it afterwards.

    It is worth no failure: without one, a dead forkserver's successor needs the seconds of its imports.
    """
    global _standby
    _replace_if_dead()
    if pid() is None or (_standby is not None and _is_alive(_standby)):
        return
    _drop_standby()
    try:
        _standby = _forked_standby() if _generation < _MOST_GENERATIONS else _fresh_standby()
    except (OSError, EOFError) as exc:
        log.warning("no forkserver in waiting: %s", exc, extra={"action": "no_standby"})


def stop() -> None:
    """End both. Blocks until they have ended what is left of their children."""
    global _generation
    _drop_standby()
    _generation = 0
    _handle()._stop()  # noqa: SLF001


def _forked_standby() -> _Standby:
    """Fork one: it costs a few milliseconds, and memory only for what it or the other one changes."""
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    needed, alive = multiprocessing.Pipe(duplex=False)
    with needed, alive, socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
            Path(address).chmod(0o600)
            listener.listen()
            process = context().Process(target=standby.main, args=(listener, needed), name="standby")
            start(process)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(address).unlink()
            raise
        return _Standby(process, process.pid or 0, address, os.dup(alive.fileno()), _generation + 1)


def _fresh_standby() -> _Standby:
    """Start one that imports all by itself, meanwhile."""
    fresh: Any = forkserver.ForkServer()
    fresh.set_forkserver_preload(forked.PRELOAD)
    fresh.ensure_running()
    return _Standby(None, fresh._forkserver_pid, fresh._forkserver_address, fresh._forkserver_alive_fd, 0)  # noqa: SLF001


def _replace_if_dead(*, within_s: float = 0.0) -> bool:
    """Put the standby into the place of a forkserver that has died; returns whether it had."""
    global _standby, _generation
    server = _handle()
    if (number := pid()) is None or not _reaped(number, within_s):
        return False
    with server._lock:  # noqa: SLF001
        os.close(server._forkserver_alive_fd)  # noqa: SLF001
        with contextlib.suppress(OSError):
            Path(server._forkserver_address).unlink()  # noqa: SLF001
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None  # noqa: SLF001
        _generation = 0
        waiting, _standby = _standby, None
        if waiting is None:
            return True
        # A child of the dead one until a moment ago; now it is ours to wait for.
        if _reaped(waiting.pid, 0.0):
            _forget(waiting)
            return True
        _close_handle(waiting)
        server._forkserver_address, server._forkserver_alive_fd = waiting.address, waiting.alive  # noqa: SLF001
        server._forkserver_pid = waiting.pid  # noqa: SLF001
        _generation = waiting.generation
    log.warning("the forkserver died; another took its place", extra={"action": "forkserver_replaced", "pid": waiting.pid})
    return True


def _drop_standby() -> None:
    global _standby
    waiting, _standby = _standby, None
    if waiting is not None:
        _forget(waiting)


def _forget(waiting: _Standby) -> None:
    os.close(waiting.alive)  # it ends, if it still lives
    with contextlib.suppress(OSError):
        Path(waiting.address).unlink()
    _close_handle(waiting)


def _close_handle(waiting: _Standby) -> None:
    if waiting.process is None:
        return
    forked.forget(waiting.pid)
    with contextlib.suppress(ValueError):  # it lives a moment longer; the handle goes with its last reference
        waiting.process.close()


def _is_alive(waiting: _Standby) -> bool:
    """Whether it lives, as far as its forkserver has told: when that is dead, we shall see."""
    if waiting.process is None:
        return not _reaped(waiting.pid, 0.0)
    return forked.exit_code(waiting.process) is None


def _reaped(number: int, within_s: float) -> bool:
    """Take a dead child away; returns whether it was dead within that time, or is nobody we could wait for."""
    until = time.monotonic() + within_s
    while True:
        try:
            if os.waitpid(number, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.002)


def _start(process: ForkServerProcess) -> None:
    # A child imports the main module of its parent, to find what it defines; ours defines nothing a child needs.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        with _never_afresh():
            process.start()
    finally:
        sys.modules["__main__"] = main
    # Each start asks all that were started before how they have ended, and that can be read once: it is ours to read.
    getattr(processes, "_children").discard(process)  # noqa: B009


@contextlib.contextmanager
def _never_afresh() -> Iterator[None]:
    """Keep ``multiprocessing`` from starting a forkserver afresh, on this thread, where there is one and maybe a standby.

    It looks after it once more before each fork. One that dies between our look and that one would be followed by a fresh
    one, for whose imports the fork waits, although a standby is there. As it is, the fork fails at once, and we see to it.
    """
    server, thread = _handle(), threading.get_ident()
    if pid() is None:
        yield
        return
    begin_if_dead = server.ensure_running

    def ensure_running() -> None:
        if threading.get_ident() != thread:
            begin_if_dead()

    server.ensure_running = ensure_running
    try:
        yield
    finally:
        del server.ensure_running


def _handle() -> Any:
    return getattr(forkserver, "_forkserver")  # noqa: B009 - private, and the only way to its pid and its end
