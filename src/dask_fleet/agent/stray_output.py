"""What a process writes to its descriptors 1 and 2, past Python: passed on to the agent's log, so much and no more.

There go C code, commands that a job runs, threads that it left behind, and what modules print while they are imported. A
process carries many jobs, so nobody can say whose it is. Whoever writes never waits for long: what is too much is dropped
and counted, in large pieces that nobody copies.

The end of it is kept: there the C library and `faulthandler` say why they end a process. An attempt that was alone in it is
told.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
import termios
from collections import deque

from dask_fleet.agent.allowance import DEAF_S, Allowance

log = logging.getLogger(__name__)

_KEPT_BYTES = 4_096
_READ_BYTES = 1 << 16
_DRAINED_BYTES = 1 << 20
"""What is still read of a dead process: what it has started may hold the pipe and write for ever."""
_FLOOD_PIPE_BYTES = 1 << 18
_FLOOD_REST_S = 0.01
"""Between two looks at a flood: with a pipe of that size it goes on at up to 25 MB/s, and costs hardly any time here."""


class StrayOutput:
    """The reading end of a pipe, which becomes this object's own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._name = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._allowance = Allowance()
        self._kept: deque[tuple[float, bytes]] = deque()
        self._kept_bytes = 0
        os.set_blocking(descriptor, False)

    def watch(self, name: str) -> None:
        """Pass on from now on what the process writes that people know by that `name`."""
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._readable)

    def drain(self) -> None:
        """Take what is left of a process that has ended, and close."""
        assert self._loop is not None
        now, left = self._loop.time(), _DRAINED_BYTES
        while left > 0 and (taken := self._take(now)):
            left -= taken
        if self._telling is not None:
            self._tell()
        self.close()

    def close(self) -> None:
        """Hear no more."""
        for timer in (self._resting, self._telling):
            if timer is not None:
                timer.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def since(self, when: float) -> str:
        """Return the end of what has been written since then."""
        data = b"".join(data for written, data in self._kept if written >= when)
        return data[-_KEPT_BYTES:].decode("utf-8", "replace").strip()

    # ------------------------------------------------------------------ inside

    def _readable(self) -> None:
        assert self._loop is not None
        taken = self._take(self._loop.time())
        if taken is None:
            return
        if taken == 0:
            self._loop.remove_reader(self._descriptor)
        elif self._allowance.deaf:
            self._loop.remove_reader(self._descriptor)
            self._resting = self._loop.call_later(_FLOOD_REST_S, self._listen_again)

    def _listen_again(self) -> None:
        assert self._loop is not None
        self._resting = None
        self._loop.add_reader(self._descriptor, self._readable)

    def _take(self, now: float) -> int | None:
        """Take what is there; returns how many bytes: ``None`` if there is nothing now, 0 if there will never be."""
        try:
            dropped = self._drop_most(now) if self._allowance.deaf else 0
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        if data:
            self._pass_on(data, now)
            self._keep(data, now)
        return len(data) + dropped

    def _pass_on(self, data: bytes, now: float) -> None:
        kept = self._allowance.take(len(data), now)
        if kept:
            with contextlib.suppress(OSError):
                os.write(2, data if kept == len(data) else data[:kept] + b"\n")
        if self._allowance.deaf and self._telling is None and self._loop is not None:
            self._telling = self._loop.call_later(DEAF_S, self._tell)
            with contextlib.suppress(OSError):  # a user who has had all the pipes there may be: then it is slower
                fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _FLOOD_PIPE_BYTES)

    def _drop_most(self, now: float) -> int:
        """Let go of all but the end of what waits, which may tell why the process dies; returns how many bytes."""
        waiting = _waiting(self._descriptor) - _KEPT_BYTES
        if waiting <= 0:
            return 0
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return 0  # no descriptor is left: it is read instead
        try:
            dropped = os.splice(self._descriptor, nowhere, waiting)
        except OSError:
            return 0
        finally:
            os.close(nowhere)
        self._allowance.take(dropped, now)
        return dropped

    def _keep(self, data: bytes, now: float) -> None:
        self._kept.append((now, data[-_KEPT_BYTES:]))
        self._kept_bytes += len(self._kept[-1][1])
        while self._kept_bytes - len(self._kept[0][1]) >= _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def _tell(self) -> None:
        self._telling = None
        log.warning(
            "%s wrote more to its descriptors 1 and 2 than is kept", self._name,
            extra={"action": "output_dropped", "worker": self._name, "dropped_bytes": self._allowance.hear_again()},
        )  # fmt: skip


def _waiting(descriptor: int) -> int:
    found: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0]
    return found
