"""Accepts connections, a few in each turn of the event loop.

The event loop's own server accepts all that wait, up to its backlog, before it looks at anything else: whoever opens a
thousand connections at once would stop it for as long as that takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 2
"""Then it is the turn of whoever else waits for the event loop. One costs 80 µs until its first byte is read."""
_PAUSE_S = 0.5
"""Without descriptors or memory, accepting again at once would fail again at once."""


class Listener:
    """In the place of an `asyncio.Server`.

    Parameters
    ----------
    listener
        Bound and listening, not blocking. It stays its owner's.
    make
        Makes the protocol of a connection.
    """

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self.sockets = (listener,)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more, and end what is only about to become a connection; connections go on."""
        if self._pause is not None:
            self._pause.cancel()
        with contextlib.suppress(ValueError, OSError):  # its owner may have closed it
            self._loop.remove_reader(self._listener)
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until nothing is about to become a connection."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, sock: socket.socket, peer: str) -> None:  # noqa: ARG002 - some count by it
        """Make a connection of what was accepted."""
        self.spawn(self._connect(sock), sock, name="connect")

    async def _connect(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # gone already
            await self._loop.connect_accepted_socket(self._make, sock)

    def spawn(
        self,
        work: Coroutine[Any, Any, None],
        sock: socket.socket,
        *,
        name: str,
        after: Callable[[], None] | None = None,
    ) -> asyncio.Task[None]:
        """Do a connection's beginning in a task; `after` is called at its end. Without a connection the socket is closed."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if after is not None:
                after()
            if task.cancelled():
                sock.close()  # it may not even have begun
            elif (exc := task.exception()) is not None:
                sock.close()
                log.error("a connection could not begin", exc_info=exc, extra={"action": "connection_failed"})

        task.add_done_callback(ended)
        return task

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                log.error(  # noqa: TRY400 - the message says it all
                    "cannot accept connections: %s", exc.strerror, extra={"action": "accept_failed"}
                )
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._listener, self._accept)
                return
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self.begin(sock, str(address[0]))
