"""The logs of attempts, on the server's side: takes what distant agents send, and gives readers what there is.

The text is data to everyone here: read and written in threads of its own, never looked into.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from dask_fleet.config.threads import started
from dask_fleet.controller.agents import AgentHandle, agent_home
from dask_fleet.controller.changes import Changes
from dask_fleet.controller.dispatcher import Spawn
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.logs import LOG_CHUNK_BYTES, MAX_LOG_BYTES, LogStream, log_path
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.protocol.frames import LogAck, LogChunk, LogGrown

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 2
_MAX_WAITING = 8
"""Chunks of one agent that wait to be written. It sends one at a time; what is beyond this is sent again."""
_REMEMBERED = 4_096
"""Attempts of which it is known who ran them, and how much they wrote."""
SETTLE_S = 10.0
"""How long those who follow a log wait for what an agent far away has still to send of it."""


class JobLogs:
    """The folder ``DATA_DIR/logs``.

    A chunk that is not the agent's to write, or malformed, is refused by acknowledging the whole stream, so that nobody
    sends it for ever.
    """

    def __init__(self, folder: Path, *, ledger: Ledger, changes: Changes, spawn: Spawn) -> None:
        self.folder = folder
        self._ledger = ledger
        self._changes = changes
        self._spawn = spawn
        self._threads = started(_THREADS, "job-logs")
        self._waiting: dict[str, int] = {}
        self._expected: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._homes: OrderedDict[tuple[int, int], str] = OrderedDict()

    def close(self) -> None:
        """End the threads; what they do now takes a moment at most."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Do work on the folder in one of the threads for it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # ------------------------------------------------------------------ from agents

    def receive(self, handle: AgentHandle, frame: LogChunk | LogGrown) -> None:
        """Take a frame of an agent; never blocks."""
        if isinstance(frame, LogGrown):
            self._changes.log_grew(frame.seq)
            return
        waiting = self._waiting.get(handle.agent_id, 0)
        if waiting < _MAX_WAITING:
            self._waiting[handle.agent_id] = waiting + 1
            self._spawn(self._take(handle, frame), f"log-{frame.seq}-{frame.attempt}")

    async def _take(self, handle: AgentHandle, chunk: LogChunk) -> None:
        try:
            upto = await self._write(handle, chunk)
        except (OSError, LedgerUnavailable) as exc:  # it is sent again, and then the disk may have room
            log.warning("a job's log was not written: %s", exc, extra={"action": "log_waits", "seq": chunk.seq})
            return
        finally:
            left = self._waiting.pop(handle.agent_id) - 1
            if left:
                self._waiting[handle.agent_id] = left
        handle.send(LogAck(chunk.seq, chunk.attempt, chunk.stream, upto))
        self._changes.log_grew(chunk.seq)

    async def _write(self, handle: AgentHandle, chunk: LogChunk) -> int:
        if not is_sound(chunk) or not await self._is_of(handle, chunk):
            log.warning(
                "log of an attempt refused",
                extra={"action": "log_refused", "agent": handle.agent_id, "seq": chunk.seq, "attempt": chunk.attempt},
            )
            return MAX_LOG_BYTES
        path = self.folder / log_path(chunk.seq, chunk.attempt, LogStream(chunk.stream))
        return await self.run(partial(_put, path, chunk.offset, chunk.data))

    async def _is_of(self, handle: AgentHandle, chunk: LogChunk) -> bool:
        """Whether the attempt is or was that agent's, or that of an earlier process in its folder."""
        key = (chunk.seq, chunk.attempt)
        if key in handle.held:
            return True
        home = self._homes.get(key)
        if home is None:
            for attempt in await self._ledger.attempts(chunk.seq):
                if attempt.attempt == chunk.attempt:
                    home = self._homes[key] = agent_home(attempt.agent)
            while len(self._homes) > _REMEMBERED:
                self._homes.popitem(last=False)
        return home == handle.home

    # ------------------------------------------------------------------ for readers

    async def sizes(self, seq: int, attempts: Iterable[int]) -> dict[tuple[int, LogStream], int]:
        """Return how many bytes there are of each stream that has any, in order of the attempts."""
        return await self.run(partial(_sizes, self.folder, seq, list(attempts)))

    def expect(self, seq: int, attempt: int, size: int) -> None:
        """An attempt that has ended wrote so many bytes; of one far away they may still be arriving."""
        self._expected[seq, attempt] = size
        if len(self._expected) > _REMEMBERED:
            self._expected.popitem(last=False)

    async def settle(self, seq: int, attempt: int) -> None:
        """Wait until all that an attempt which has ended wrote is here, at most `SETTLE_S`."""
        expected = self._expected.get((seq, attempt))
        if expected is None:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        with self._changes.subscribe(seq, logs=True) as ear:
            while sum((await self.sizes(seq, [attempt])).values()) < expected and (left_s := until - loop.time()) > 0:
                await ear.next(left_s)
        self._expected.pop((seq, attempt), None)

    async def read(self, seq: int, attempt: int, stream: LogStream, start: int = 0, stop: int = MAX_LOG_BYTES) -> bytes:
        """Return a part of a stream; nothing where there is nothing."""
        return await self.run(partial(_read, self.folder / log_path(seq, attempt, stream), start, stop))


def is_sound(chunk: LogChunk) -> bool:
    """Whether the fields of a chunk are such as an honest agent sends."""
    return (
        chunk.seq > 0
        and chunk.attempt > 0
        and chunk.stream in set(LogStream)
        and 0 < len(chunk.data) <= LOG_CHUNK_BYTES
        and 0 <= chunk.offset <= MAX_LOG_BYTES - len(chunk.data)
    )


def _put(path: Path, offset: int, data: bytes) -> int:
    """Write `data` at its place, unless that would leave a gap; return up to where the file is whole."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if offset > size:
            return size  # the file was lost: the agent begins again where it ends
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
        return max(size, offset + done)
    finally:
        os.close(descriptor)


def _sizes(folder: Path, seq: int, attempts: list[int]) -> dict[tuple[int, LogStream], int]:
    found: dict[tuple[int, LogStream], int] = {}
    for attempt in attempts:
        for stream in LogStream:
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(folder / log_path(seq, attempt, stream), follow_symlinks=False).st_size  # noqa: PTH116
                if size:
                    found[attempt, stream] = min(size, MAX_LOG_BYTES)
    return found


def _read(path: Path, start: int, stop: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(max(0, min(stop, MAX_LOG_BYTES) - start))
