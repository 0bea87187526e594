"""A process forked from the agent's forkserver, seen from the agent: frames over a socket pair, and its exit, told once."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import signal
import socket
import sys
import termios
import types
from collections.abc import Callable
from concurrent.futures import Executor
from multiprocessing.context import ForkServerProcess
from typing import Any, Generic, TypeVar

from dask_fleet.agent import forked
from dask_fleet.agent.deaths import describe_exit
from dask_fleet.protocol.frames import Frame, encode_prefixed

F = TypeVar("F")

_RECEIVE_BYTES = 1 << 18


class FrameBuffer:
    """Cuts a stream of bytes into frames."""

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self._decode = decode
        self._received = bytearray()

    def take(self, data: bytes) -> list[Any]:
        """Return the frames that `data` completes."""
        self._received += data
        frames: list[Any] = []
        start, size = 0, len(self._received)
        while size - start >= 4:
            end = start + 4 + int.from_bytes(self._received[start : start + 4], "big")
            if end > size:
                break
            frames.append(self._decode(bytes(self._received[start + 4 : end])))
            start = end
        del self._received[:start]
        return frames


class ChildProcess(Generic[F]):
    """A living child. `watch` begins to listen; its frames are of type `F`."""

    def __init__(self, process: ForkServerProcess, channel: socket.socket, decode: Callable[[bytes], F]) -> None:
        self.pid = process.pid or 0
        self.ended = False
        self._process = process
        self._channel = channel
        self._frames = FrameBuffer(decode)
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._on_frame: Callable[[F], None] = lambda _: None
        self._on_exit: Callable[[str], None] = lambda _: None

    def watch(self, on_frame: Callable[[F], None], on_exit: Callable[[str], None]) -> None:
        """Call `on_frame` with each frame, and `on_exit` once, after the last one, with how it ended."""
        self._on_frame, self._on_exit = on_frame, on_exit
        self._loop.add_reader(self._channel.fileno(), self._readable)
        # The pipe from the forkserver says that it has ended: what the child has forked may hold the socket open.
        self._loop.add_reader(self._process.sentinel, self._exited)

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
            data = self._channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            return
        for frame in self._frames.take(data):
            self._on_frame(frame)

    def _exited(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        while True:  # what it said before it ended
            try:
                data = self._channel.recv(_RECEIVE_BYTES)
            except OSError:
                break
            if not data:
                break
            for frame in self._frames.take(data):
                self._on_frame(frame)
        how = _how(self._process)
        self.ended = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has started must not outlive it
        self._process.join(0)
        self._process.close()
        forked.forget(self.pid)
        self._on_exit(how)


class Forker:
    """Forks children from the agent's forkserver.

    Parameters
    ----------
    thread
        An executor of one thread, the same for everything that forks in this process: the forkserver's handle is
        process-wide, and a fork waits until the forkserver has loaded its libraries.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(forked.PRELOAD)

    async def fork(
        self, target: Callable[..., None], *args: object, name: str, decode: Callable[[bytes], F]
    ) -> ChildProcess[F]:
        """Fork a child that calls ``target(channel, *args)``.

        Raises
        ------
        OSError, EOFError
            If the forkserver died meanwhile or the host has no process left to give.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)  # noqa: FBT003
            process = await asyncio.get_running_loop().run_in_executor(self._thread, self._fork, target, theirs, args, name)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ChildProcess(process, ours, decode)

    def _fork(
        self, target: Callable[..., None], channel: socket.socket, args: tuple[object, ...], name: str
    ) -> ForkServerProcess:
        process = self._context.Process(target=target, args=(channel, *args), name=name)
        # A child imports the main module of its parent, to find what it defines; ours defines nothing a child needs.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
        forked.remember(process.pid or 0)
        return process


def _how(process: ForkServerProcess) -> str:
    """Return words for the end of a child. Its forkserver tells the code, or has died, and then so has the child."""
    told = bytearray(4)
    fcntl.ioctl(process.sentinel, termios.FIONREAD, told)
    code = process.exitcode  # 255 for a child of a dead forkserver, which one may have left with, too
    return describe_exit(code) if any(told) and code is not None else "ended with its forkserver, which died"
