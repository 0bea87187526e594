"""JSON renderings of large results, made by a helper process: the server unpacks no result itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

from dask_fleet.config.secret import without_secrets
from dask_fleet.model.errors import CapacityError, InternalError

RENDERABLE = frozenset(
    {"application/vnd.apache.arrow.stream", "application/x-npy", "text/plain", "image/png", "application/octet-stream"}
)
"""Stored forms that the helper takes."""

MAX_PROCESSES = 2
QUEUE_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0
"""For each piece that goes in or comes out."""

_PIECE_BYTES = 64 << 10
_STDERR_BYTES = 4_000
_log = logging.getLogger(__name__)

HELPER = (sys.executable, "-P", "-m", "dask_fleet.codecs.render")
"""``-P``: the folder where the server was started must not shadow a module of the helper."""

_T = TypeVar("_T")


class Renderer:
    """Starts at most `MAX_PROCESSES` helpers at once: each holds a result in memory."""

    def __init__(self, command: Sequence[str] = HELPER) -> None:
        self._command = tuple(command)
        self._turn = asyncio.Semaphore(MAX_PROCESSES)

    async def start(self, media_type: str, source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Return the rendering of `source`, piece by piece; its first piece has come when this returns.

        The returned generator must be closed, which ends the helper and closes `source`.

        Raises
        ------
        CapacityError
            If the helpers stay busy for `QUEUE_TIMEOUT_S`.
        InternalError
            If the helper fails before its first byte. A failure after that breaks the answer off, so that nobody takes
            the half for the whole.
        """
        pieces = self._render(media_type, source)
        try:
            await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise
        return pieces

    async def _render(self, media_type: str, source: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield an empty piece once the first one is there, then all. So `start` hands out a generator that has begun:
        one that has not would, when closed, leave its helper running.
        """
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(aclosing(source))
            try:
                async with asyncio.timeout(QUEUE_TIMEOUT_S):
                    await self._turn.acquire()
            except TimeoutError:
                raise CapacityError(
                    "too many large results are being rendered; take the stored form", retry_after_s=5
                ) from None
            stack.callback(self._turn.release)
            process = await asyncio.create_subprocess_exec(
                *self._command,
                media_type,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=without_secrets(os.environ),
            )
            stack.push_async_callback(_end, process)
            assert process.stdout is not None
            feeder = asyncio.create_task(_feed(process, source), name="render-feeder")
            listener = asyncio.create_task(_complaint(process), name="render-stderr")
            stack.push_async_callback(_cancel, feeder, listener)
            begun = False
            while piece := await _in_time(process.stdout.read(_PIECE_BYTES)):
                if not begun:
                    begun = True
                    yield b""
                yield piece
            await _in_time(asyncio.gather(feeder, return_exceptions=True))
            status = await _in_time(process.wait())
            if status != 0 or (not feeder.cancelled() and feeder.exception() is not None):
                _log.error(
                    "rendering failed: %s",
                    await _in_time(listener),
                    exc_info=feeder.exception(),
                    extra={"action": "rendering_failed", "media_type": media_type, "status": status},
                )
                raise InternalError("the result could not be rendered as JSON; take its stored form by the Accept header")
            if not begun:
                yield b""


async def _feed(process: asyncio.subprocess.Process, source: AsyncGenerator[bytes, None]) -> None:
    assert process.stdin is not None
    # A helper that has had enough, or has died, says so by its exit status.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        async for piece in source:
            process.stdin.write(piece)
            await _in_time(process.stdin.drain())
        process.stdin.close()
        await _in_time(process.stdin.wait_closed())


async def _complaint(process: asyncio.subprocess.Process) -> str:
    """Return the end of what the helper says on its standard error, having read all of it."""
    assert process.stderr is not None
    tail = b""
    while piece := await process.stderr.read(_PIECE_BYTES):
        tail = (tail + piece)[-_STDERR_BYTES:]
    return tail.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _in_time(awaitable: Awaitable[_T]) -> _T:
    async with asyncio.timeout(STALL_TIMEOUT_S):
        return await awaitable
