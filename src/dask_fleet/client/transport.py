"""HTTP to one server: the token, time-outs, retries, and errors as exceptions. All of the SDK's I/O passes here."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

import dask_fleet
from dask_fleet.client.problems import error_from
from dask_fleet.client.retries import RetryPolicy
from dask_fleet.config.discovery import is_loopback
from dask_fleet.config.secret import Secret
from dask_fleet.config.trust import CURE, Trust, explain
from dask_fleet.model.errors import ConnectionFailed, FleetError, UntrustedServer

CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 100


class Transport:
    """A pool of connections to one server.

    Parameters
    ----------
    url
        The server's root.
    token
        Shown in every request.
    timeout_s
        Longest silence of the server in one request, beyond the time it was asked to wait.
    retry
        How patiently requests are repeated.
    trust
        How the server of an ``https`` URL is known; by default what this machine's authorities say.
    http
        Another transport than the network, for tests.
    """

    def __init__(
        self,
        url: str,
        token: Secret | None,
        *,
        timeout_s: float,
        retry: RetryPolicy,
        trust: Trust | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._retry = retry
        self._reached = False
        headers = {"User-Agent": f"dask-fleet/{dask_fleet.__version__}", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.reveal()}"
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            transport=http,
            # A cluster's proxy settings rarely exempt this machine, and loopback never needs a proxy.
            trust_env=not is_loopback(url),
            # Reading the certificate bundle takes 20 ms; redirects are not followed, so plain HTTP never needs it.
            verify=_verification(url, trust),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )

    async def close(self) -> None:
        """Close all connections. Twice is harmless."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        wait_s: float = 0.0,
    ) -> httpx.Response:
        """Send a request, again while that helps, and return its answer of the 200 range.

        Parameters
        ----------
        method, path, query, headers, content
            The request.
        wait_s
            How long the server was asked to hold the answer back.

        Raises
        ------
        ConnectionFailed
            If the server cannot be reached.
        FleetError
            What the server answered.
        """
        timeout = self._timeout(wait_s)
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._http.request(
                    method, path, params=query, headers=headers, content=content, timeout=timeout
                )
            except httpx.TransportError as exc:
                error: FleetError = self._unreachable(exc)
                again = self._worth_retrying(exc)
                cause: BaseException | None = exc
            else:
                self._reached = True
                if response.is_success:
                    return response
                error = error_from(response.status_code, response.headers, response.content)
                again = error.retryable
                cause = None
            delay = self._retry.delay(
                attempt,
                elapsed_s=time.monotonic() - started,
                retry_after_s=error.retry_after_s,
                jitter=random.random(),
            )
            if not again or delay is None:
                raise error from cause
            await asyncio.sleep(delay)

    async def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send a request as `request` and return the object that the answer holds."""
        document = (await self.request(method, path, **options)).json()
        if not isinstance(document, dict):
            raise ConnectionFailed(f"{self.url} does not answer like a Dask Fleet server; check FLEET_URL")
        return document

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str], silence_s: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        """GET an answer piece by piece, without retries: the caller knows where to resume.

        Raises
        ------
        ConnectionFailed
            If the server cannot be reached or the stream breaks.
        FleetError
            What the server answered.
        """
        timeout = self._timeout(0.0 if silence_s is None else silence_s)
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                self._reached = True
                if not response.is_success:
                    raise error_from(response.status_code, response.headers, await response.aread())
                yield response
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc

    def retry_delay(self, attempt: int, *, elapsed_s: float, error: FleetError) -> float | None:
        """Return the seconds to wait before a stream is opened again, or ``None`` to give up."""
        if not error.retryable:
            return None
        return self._retry.delay(
            attempt, elapsed_s=elapsed_s, retry_after_s=error.retry_after_s, jitter=random.random()
        )

    def _timeout(self, wait_s: float) -> httpx.Timeout:
        # Waiting for a connection of the pool is waiting for our own requests, each of which has its time-out.
        return httpx.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S, read=self._timeout_s + wait_s, pool=None)

    def _worth_retrying(self, exc: httpx.TransportError) -> bool:
        if isinstance(exc, httpx.UnsupportedProtocol | httpx.ProxyError) or explain(exc) is not None:
            return False
        # A server never seen is most likely not running or elsewhere: say so at once. One seen before may be restarting.
        return self._reached or not isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout)

    def _unreachable(self, exc: httpx.TransportError) -> ConnectionFailed:
        if (why := explain(exc)) is not None:
            return UntrustedServer(f"refused to speak with {self.url}: {why}. {CURE}")
        reason = str(exc) or type(exc).__name__
        return ConnectionFailed(
            f"cannot reach the server at {self.url} ({reason}). Is it running? Start one with `dask-fleet serve FILE`, "
            "or set FLEET_URL to where it runs."
        )


def _verification(url: str, trust: Trust | None) -> ssl.SSLContext | bool:
    """Return how httpx is to know the server. A context costs 20 ms, so only those get one who need it."""
    if urlsplit(url).scheme != "https":
        return False
    return True if trust is None or trust == Trust() else trust.context()
