"""Forks children from the agent's forkserver."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from dask_fleet.agent import forkservers, guard
from dask_fleet.agent.child_process import ChildProcess
from dask_fleet.agent.exits import ExitNotice, ToldByForkserver, ToldByGuard

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
        self,
        target: Callable[..., None],
        *args: object,
        name: str,
        decode: Callable[[bytearray], F],
        guarded: bool = False,
    ) -> ChildProcess[F]:
        """Fork a child that calls ``target(channel, *args)``; a dead forkserver is replaced.

        Parameters
        ----------
        guarded
            Whether it gets a parent of its own, so that it shares its fate with no other (see `guard`).

        Raises
        ------
        OSError, EOFError
            If the forkserver died meanwhile or the host has no process left to give.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)  # noqa: FBT003
            fork = self._fork_guarded if guarded else self._fork
            notice = await asyncio.get_running_loop().run_in_executor(self._thread, fork, target, theirs, args, name)
        except BaseException:
            ours.close()  # a child that comes up in spite of it reads the end, and ends
            raise
        finally:
            theirs.close()
        return ChildProcess(notice, ours, decode)

    def _fork(
        self, target: Callable[..., None], channel: socket.socket, args: tuple[object, ...], name: str
    ) -> ExitNotice:
        process = self._context.Process(target=target, args=(channel, *args), name=name)
        forkservers.start(process)
        return ToldByForkserver(process)

    def _fork_guarded(
        self, target: Callable[..., None], channel: socket.socket, args: tuple[object, ...], name: str
    ) -> ExitNotice:
        hears, tells = multiprocessing.Pipe(duplex=False)
        with hears, tells:
            process = self._context.Process(target=guard.main, args=(channel, tells, target, *args), name=name)
            forkservers.start(process)
            tells.close()  # or nobody would hear the guard's death
            return ToldByGuard(process, hears)
