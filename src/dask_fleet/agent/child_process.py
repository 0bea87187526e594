"""A process forked from the agent's forkserver, seen from the agent: frames over a socket pair, and its exit, told once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from dask_fleet.agent.exits import ExitNotice
from dask_fleet.agent.framing import RECEIVE_BYTES, FrameBuffer
from dask_fleet.protocol.frames import Frame, encode_prefixed

log = logging.getLogger(__name__)

F = TypeVar("F")



class ChildProcess(Generic[F]):
    """A living child. `watch` begins to listen; its frames are of type `F`."""

    def __init__(self, notice: ExitNotice, channel: socket.socket, decode: Callable[[bytearray], F]) -> None:
        self.pid = notice.pid
        self.forkserver = notice.forkserver
        """Pid of what it was forked from."""
        self.ended = False
        self._notice = notice
        self._channel = channel
        self._frames = FrameBuffer(decode)
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._on_frame: Callable[[F], None] = lambda _: None
        self._on_exit: Callable[[int | None], None] = lambda _: None

    def watch(self, on_frame: Callable[[F], None], on_exit: Callable[[int | None], None]) -> None:
        """Call `on_frame` with each frame, and `on_exit` once, after the last one.

        That gets the exit code, negative for a signal, or ``None`` if its forkserver or guard died with it;
        `deaths.describe_exit` has words for it.
        """
        self._on_frame, self._on_exit = on_frame, on_exit
        self._loop.add_reader(self._channel.fileno(), self._readable)
        # The pipe from its forkserver or guard, not the end of the socket pair, says that it has ended: what the child has
        # forked may hold the socket open.
        self._loop.add_reader(self._notice.sentinel, self._exited)

    def send(self, frame: Frame) -> None:
        """Send a frame; what the socket does not take now follows when it can. To a dead child it is lost."""
        if self.ended:
            return
        data = encode_prefixed(frame)
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._channel.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it has died; its exit is about to be noticed
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def kill(self) -> None:
        """Kill it together with what it has started; its exit is reported as any other."""
        if self.ended:
            return
        for kill in (os.killpg, os.kill):  # its group does not exist before it has made it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        self._notice.wake()

    def ask_for_end(self) -> None:
        """It is dead, yet nobody has said so: see to it that somebody does."""
        if not self.ended:
            self._notice.wake()

    def _writable(self) -> None:
        try:
            sent = self._channel.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
            sent = 0
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            data = self._channel.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            for frame in self._frames.take(data):
                self._on_frame(frame)
        except msgspec.MsgspecError:
            # Somebody in it has written to a descriptor that is not theirs: nothing that follows can be understood.
            extra = {"action": "child_not_understood", "pid": self.pid}
            log.exception("a process of this agent has sent what is no frame and is killed", extra=extra)
            self.kill()

    def _exited(self) -> None:
        self._loop.remove_reader(self._notice.sentinel)
        self._drain()
        code = self._notice.exit_code()
        self.ended = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has started must not outlive it
        self._notice.close()
        self._on_exit(code)

    def _drain(self) -> None:
        """Take what it said before it ended: an outcome that is here is no loss."""
        while True:
            try:
                data = self._channel.recv(RECEIVE_BYTES)
            except OSError:
                return
            if not data:
                return
            self._take(data)
