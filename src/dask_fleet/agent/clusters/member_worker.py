"""Dask's worker as one of several in a process that lives on after it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from typing import Any

import distributed.core
from distributed import Client, Worker
from distributed.core import Status
from distributed.utils import in_async_call
from distributed.worker import WORKER_ANY_RUNNING

log = logging.getLogger(__name__)

_CLIENT_CLOSE_S = 2.0
_CLOSE_S = 10.0


class MemberWorker(Worker):  # type: ignore[misc]
    """A worker without an HTTP listener, whose end touches nothing outside of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.close_reason = ""
        self.prepared = asyncio.Event()
        """Set once all that is left of its start is the scheduler's answer."""
        self.status: Any
        self._client: Any
        self._clients: list[Any] = []
        self._clients_lock = threading.Lock()
        super().__init__(*args, **options)

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Dask's worker would listen on a port for health checks and metrics."""

    async def _register_with_scheduler(self) -> None:
        self.prepared.set()
        await super()._register_with_scheduler()

    def _get_client(self, timeout: float | None = None) -> Any:
        """Return the client of this worker's tasks.

        Dask lets two tasks that ask at once make two clients and forgets one, and makes one while the worker closes. Both
        would try to reconnect for as long as the process lives.
        """
        if in_async_call(self.loop):  # on the loop nobody comes in between, and nobody may wait for a lock
            return self._client if self._usable(self._client) else self._remember(super()._get_client(timeout))
        with self._clients_lock:
            return self._client if self._usable(self._client) else self._remember(super()._get_client(timeout))

    def _usable(self, client: Any) -> bool:
        if self.status not in WORKER_ANY_RUNNING:
            raise RuntimeError("this worker has left its cluster: there is no scheduler to be a client of")
        if client is not None and client.status in ("closed", "closing"):
            self._client = client = None  # a task closed it; the next one gets another
        return client is not None

    def _remember(self, client: Any) -> Any:
        self._clients.append(client)
        return client

    async def close(
        self,
        timeout: float = _CLOSE_S,  # noqa: ASYNC109 - Dask's signature
        executor_wait: bool = False,  # noqa: ARG002, FBT001, FBT002
        nanny: bool = False,  # noqa: ARG002, FBT001, FBT002
        reason: str = "worker-close",
    ) -> str | None:
        """Close without waiting for tasks: their threads are the pool's. Does not raise, and ends in bounded time.

        Where Dask finds that a worker does not close it ends the process, which here has other tenants.
        """
        if self.status in (Status.closed, Status.closing, Status.failed):
            await self.finished()
            return None
        self.close_reason = self.close_reason or reason
        await self._close_clients()
        answer: str | None = None
        try:
            async with asyncio.timeout(timeout + 5):
                answer = await super().close(timeout=timeout, executor_wait=False, nanny=False, reason=reason)
        except Exception:
            log.exception("a Dask worker did not close", extra={"action": "leave", "worker": self.name})
            self._stop_listeners()
            self.status = Status.closed
            self._event_finished.set()
        # Dask removes its folder from the path only if nobody has put another one in front.
        with contextlib.suppress(ValueError):
            sys.path.remove(self.local_directory)
        forget_handlers()
        return answer

    async def _close_clients(self) -> None:
        """Close the clients of our tasks while the scheduler can still be told. Tasks that wait for futures are released."""
        clients = [*self._clients, self._client]
        self._clients.clear()
        for client in {id(client): client for client in clients}.values():
            if not isinstance(client, Client) or client.status == "closed":
                continue
            client._asynchronous = True  # noqa: SLF001 - it is to be closed from this loop, whichever thread made it
            try:
                async with asyncio.timeout(_CLIENT_CLOSE_S):
                    await client._close(fast=True)  # noqa: SLF001
            except Exception as exc:  # noqa: BLE001 - the rest goes on without it
                log.debug("a task's client did not close: %r", exc)
        self._client = None


def forget_handlers() -> None:
    """Empty the cache in which Dask keeps the bound methods of every server that ever answered, and with them the server.

    Some 150 kB a worker and more with its tasks' histories. What is in use is in the cache again with its next call.
    """
    cached: Any = getattr(distributed.core, "_expects_comm", None)
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()
