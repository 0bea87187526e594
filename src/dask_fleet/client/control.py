"""The few requests that a cluster's owner sends to the server, over kept connections, from any thread.

Clusters do not use the SDK's `Transport`: its HTTP library takes as long to import as a cluster to start.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import http.client
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import dask_fleet
from dask_fleet.client.problems import error_from
from dask_fleet.client.retries import RetryPolicy
from dask_fleet.config.secret import Secret
from dask_fleet.config.settings import Settings
from dask_fleet.config.trust import CURE, Trust, explain
from dask_fleet.model.errors import ConnectionFailed, FleetError, UntrustedServer

T = TypeVar("T")

TIMEOUT_S = 30.0
PATIENCE_S = 30.0
_MAX_IDLE = 8


class ControlLink:
    """A server, asked by blocking requests. One for each server and process, shared by all its clusters.

    Parameters
    ----------
    url, token, trust
        The server, what is shown to it, and how it is known.
    """

    def __init__(self, url: str, token: Secret | None, trust: Trust) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host, self._port, self._secure = parts.hostname or "", parts.port, parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._trust = trust
        self._context: ssl.SSLContext | None = None
        self._headers = {"User-Agent": f"dask-fleet/{dask_fleet.__version__}", "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token.reveal()}"
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._reached = False

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
        patience_s: float = PATIENCE_S,
    ) -> dict[str, Any]:
        """Send a request, again while that helps, and return the document of its answer.

        Parameters
        ----------
        wait_s
            How long the server was asked to hold the answer back.
        patience_s
            How long to try again while the server restarts, is full, or the network fails.

        Raises
        ------
        ConnectionFailed
            If the server cannot be reached.
        FleetError
            What the server answered.
        """
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        sent = {**self._headers, **(headers or {})}
        if data is not None:
            sent["Content-Type"] = "application/json"
        retry = RetryPolicy(patience_s=patience_s)
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                status, got, content = self._exchange(method, self._prefix + path, data, sent, TIMEOUT_S + wait_s)
            except (OSError, http.client.HTTPException) as exc:
                error: FleetError = self._unreachable(exc)
                again = error.retryable and (self._reached or not isinstance(exc, ConnectionRefusedError | TimeoutError))
                cause: BaseException | None = exc
            else:
                self._reached = True
                if 200 <= status < 300:
                    return self._document(content)
                error = error_from(status, got, content)
                again = error.retryable
                cause = None
            delay = retry.delay(
                attempt,
                elapsed_s=time.monotonic() - started,
                retry_after_s=error.retry_after_s,
                jitter=random.random(),
            )
            if not again or delay is None:
                raise error from cause
            time.sleep(delay)

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, dict[str, str], bytes]:
        while True:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            connection = kept or self._connection()
            try:
                connection.timeout = timeout_s
                if connection.sock is not None:
                    connection.sock.settimeout(timeout_s)
                connection.request(method, path, body=data, headers=headers)
                answer = connection.getresponse()
                content = answer.read()
            except BaseException as exc:
                connection.close()
                if kept is not None and isinstance(exc, http.client.RemoteDisconnected | ConnectionError):
                    continue  # the server had closed it while it was idle; every request of ours may be repeated
                raise
            with self._lock:
                keep = not answer.will_close and len(self._idle) < _MAX_IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port)
        if self._context is None:
            self._context = self._trust.context()
        return http.client.HTTPSConnection(self._host, self._port, context=self._context)

    def _document(self, content: bytes) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ConnectionFailed(f"{self.url} does not answer like a Dask Fleet server; check FLEET_URL")
        return document

    def _unreachable(self, exc: Exception) -> ConnectionFailed:
        if (why := explain(exc)) is not None:
            return UntrustedServer(f"refused to speak with {self.url}: {why}. {CURE}")
        return ConnectionFailed(
            f"cannot reach the server at {self.url} ({str(exc) or type(exc).__name__}). Is it running? Start one with "
            "`dask-fleet serve`, or set FLEET_URL to where it runs."
        )


_links: dict[tuple[Any, ...], ControlLink] = {}
_links_lock = threading.Lock()


def link_to(settings: Settings) -> ControlLink:
    """Return this process's link to the server of `settings`."""
    token = settings.token.reveal() if settings.token is not None else None
    # After a fork the child must not write into its parent's connections.
    key = (os.getpid(), settings.url, token, settings.ca_file, settings.fingerprint)
    with _links_lock:
        link = _links.get(key)
        if link is None:
            trust = Trust(ca_file=settings.ca_file, fingerprint=settings.fingerprint)
            link = _links[key] = ControlLink(settings.url, settings.token, trust)
        return link


@atexit.register
def _close_links() -> None:
    for link in list(_links.values()):
        link.close()


def _forget_links() -> None:
    """In a forked child: the connections are its parent's, and a lock that was held meanwhile is never released there."""
    global _links_lock
    _links_lock = threading.Lock()
    _links.clear()


os.register_at_fork(after_in_child=_forget_links)


async def in_thread(work: Callable[[], T], *, name: str = "dask-fleet request") -> T:
    """Run blocking `work` in a thread of its own, one that does not hold the interpreter's end up.

    Cancelled, it leaves the work to end by itself.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            told: tuple[T | None, BaseException | None] = work(), None
        except BaseException as exc:  # noqa: BLE001 - it is raised where the answer is awaited
            told = None, exc
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, *told)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
