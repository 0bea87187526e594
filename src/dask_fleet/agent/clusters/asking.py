"""How a member asks a scheduler that may be busy, and tells that from one that refuses it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from distributed.comm import connect

from dask_fleet.agent.clusters.frames import Join


class Unanswered(Exception):
    """The scheduler has not answered a worker that was ready."""


async def answered(
    join: Join, connection_args: Callable[[], dict[str, Any]], asking: asyncio.Task[Any], leaving: asyncio.Task[Any]
) -> None:
    """Wait until `asking` has its answer or the membership is to end.

    A scheduler may be busy for as long as a large graph takes it: asking on is what helps then, while a start from the
    beginning would only come later.

    Parameters
    ----------
    connection_args
        Returns those of the member, for connections that only look.

    Raises
    ------
    Unanswered
        After ``join.answer_s``.
    ConnectionRefusedError
        If member and scheduler refuse each other's certificates.
    """
    deadline = time.monotonic() + join.answer_s
    while True:
        left_s = deadline - time.monotonic()
        waits_s = max(0.0, min(join.probe_s, left_s))
        done, _ = await asyncio.wait([asking, leaving], timeout=waits_s, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return
        if left_s <= 0:
            raise Unanswered(f"its scheduler at {join.scheduler} did not answer it within {join.answer_s:g} s")
        probe = asyncio.create_task(_refusal(join.scheduler, connection_args(), join.probe_s), name="probe")
        try:
            await asyncio.wait([asking, leaving, probe], return_when=asyncio.FIRST_COMPLETED)
        finally:
            probe.cancel()
        if not asking.done() and not leaving.done() and (refusal := probe.result()):
            raise ConnectionRefusedError(f"it and its scheduler do not accept each other's certificates: {refusal}")


async def _refusal(address: str, connection_args: dict[str, Any], timeout_s: float) -> str:
    """Say why scheduler and member refuse each other's certificates; empty if they do not, or none answers.

    Dask asks again after every failure, this one too.
    """
    try:
        async with asyncio.timeout(timeout_s):
            comm = await connect(address, timeout=timeout_s / 2, **connection_args)
    except OSError as exc:  # `TimeoutError` is one
        return _tls_error(exc)
    comm.abort()
    return ""


def _tls_error(exc: BaseException) -> str:
    """Return what an exception that came of a failed TLS handshake says of it, an empty text for any other."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return ""
