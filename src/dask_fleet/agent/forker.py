"""Forks children from the agent's forkserver."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from multiprocessing.context import ForkServerProcess
from typing import TypeVar

from dask_fleet.agent import forkservers
from dask_fleet.agent.child_process import ChildProcess

F = TypeVar("F")


class Forker:
    """Forks children, each with a socket pair to it.

    Parameters
    ----------
    thread
        An executor of one thread, the same for everything that forks in this process: the forkserver's handle is
        process-wide, and a fork waits until the forkserver has loaded its libraries.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._context = forkservers.context()

    async def fork(
        self, target: Callable[..., None], *args: object, name: str, decode: Callable[[bytearray], F]
    ) -> ChildProcess[F]:
        """Fork a child that calls ``target(channel, *args)``; a dead forkserver is replaced.

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
            ours.close()  # a child that comes up in spite of it reads the end, and ends
            raise
        finally:
            theirs.close()
        return ChildProcess(process, ours, decode)

    def _fork(
        self, target: Callable[..., None], channel: socket.socket, args: tuple[object, ...], name: str
    ) -> ForkServerProcess:
        process = self._context.Process(target=target, args=(channel, *args), name=name)
        forkservers.start(process)
        return process
