"""Sends what attempts write to a server whose data folder is another one.

The files in the agent's own folder are the buffer: nothing is held in memory but one chunk on its way, and what was not
acknowledged when the connection, the server or the agent went is sent again from there.
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

from dask_fleet.agent.attempts import AttemptKey
from dask_fleet.model.logs import LOG_CHUNK_BYTES, MAX_LOG_BYTES, LogStream, log_path, parse_log_name
from dask_fleet.protocol.frames import LogAck, LogChunk

log = logging.getLogger(__name__)

_ACK_S = 10.0
"""After so long without an answer a chunk is sent again: the server's disk may have been full."""
_PAUSE_S = 1.0
_LEDGER_FILE = "ledger"
"""Names the ledger whose attempts these are: another one may have the same numbers."""


class _Attempt:
    """How far an attempt's log has come."""

    __slots__ = ("ended", "run", "upto")

    def __init__(self, run: int, *, ended: bool) -> None:
        self.run = run
        self.ended = ended
        self.upto: dict[LogStream, int] = {}


class LogShipper:
    """Everything happens on the event loop's thread, but for reading and removing files.

    Parameters
    ----------
    folder
        The agent's folder of logs.
    send
        Sends a frame if connected, else drops it.
    left
        What an earlier agent in this folder has left (`leftovers`).
    moved
        Called when something was acknowledged.
    """

    def __init__(
        self, folder: Path, *, send: Callable[[LogChunk], None], left: Iterable[AttemptKey], moved: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._send = send
        self._moved = moved
        self._attempts: dict[AttemptKey, _Attempt] = {key: _Attempt(0, ended=True) for key in left}
        self._queue: OrderedDict[AttemptKey, None] = OrderedDict.fromkeys(self._attempts)
        self._under_way: AttemptKey | None = None
        self._wake = asyncio.Event()
        self._online = False
        self._ledger_id = ""
        self._awaited: tuple[int, int, str] = (0, 0, "")
        self._answer: asyncio.Future[int | None] | None = None

    @property
    def busy(self) -> bool:
        """Whether something has still to be sent."""
        return bool(self._queue) or self._under_way is not None

    # ------------------------------------------------------------------ what happens

    def grew(self, seq: int, run: int, attempt: int) -> None:
        """An attempt has written."""
        key = (seq, attempt)
        if key not in self._attempts:
            self._attempts[key] = _Attempt(run, ended=False)
        self._add(key)

    def ended(self, key: AttemptKey) -> None:
        """An attempt has ended: when all that it wrote has arrived, its files are removed. Most wrote nothing."""
        attempt = self._attempts.get(key)
        if attempt is not None:
            attempt.ended = True
            self._add(key)

    def welcomed(self, ledger_id: str) -> None:
        """A server has answered."""
        if self._ledger_id not in {"", ledger_id}:
            self._attempts.clear()  # their numbers mean nothing there
            self._queue.clear()
        self._ledger_id = ledger_id
        self._online = True
        self._wake.set()

    def lost(self) -> None:
        """The server is away."""
        self._online = False
        self._resolve(None)

    def acknowledged(self, ack: LogAck) -> None:
        """The server has a stream up to there."""
        if (ack.seq, ack.attempt, ack.stream) == self._awaited:
            self._resolve(ack.upto)

    # ------------------------------------------------------------------ the work

    async def run(self) -> None:
        """Send until cancelled."""
        known_ledger = ""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._online:
                try:
                    if known_ledger != self._ledger_id:
                        await self._enter_ledger(self._ledger_id)
                        known_ledger = self._ledger_id
                    if not self._queue:
                        break
                    key, _ = self._queue.popitem(last=False)
                    self._under_way = key
                    arrived = await self._ship(key)
                except OSError as exc:
                    log.warning("a log was not sent: %s", exc, extra={"action": "log_not_sent"})
                    arrived = False
                if not arrived and self._under_way is not None:
                    self._queue[self._under_way] = None
                self._under_way = None
                if not arrived and self._online:
                    await asyncio.sleep(_PAUSE_S)
                self._moved()

    async def _enter_ledger(self, ledger_id: str) -> None:
        """Forget the files of another ledger."""
        if not await asyncio.to_thread(_claim_folder, self._folder, ledger_id):
            for key in [key for key, attempt in self._attempts.items() if attempt.run == 0]:
                del self._attempts[key]
                self._queue.pop(key, None)

    async def _ship(self, key: AttemptKey) -> bool:
        """Bring all there is of an attempt to the server; returns whether it arrived."""
        attempt = self._attempts.get(key)
        if attempt is None:
            return True
        ended = attempt.ended  # looked at before the files are: what is in them then is all
        for stream in LogStream:
            path = self._folder / log_path(*key, stream)
            while True:
                offset = attempt.upto.get(stream, 0)
                data = await asyncio.to_thread(_read, path, offset)
                if not data:
                    break
                upto = await self._exchange(LogChunk(key[0], attempt.run, key[1], stream.value, offset, data))
                if upto is None or upto == offset:
                    return False
                attempt.upto[stream] = upto
        if ended:
            self._attempts.pop(key, None)
            await asyncio.to_thread(_remove, [self._folder / log_path(*key, stream) for stream in LogStream])
        return True

    async def _exchange(self, chunk: LogChunk) -> int | None:
        """Send a chunk and return up to where the server has the stream, ``None`` if no answer came."""
        if not self._online:
            return None
        loop = asyncio.get_running_loop()
        self._awaited = (chunk.seq, chunk.attempt, chunk.stream)
        answer: asyncio.Future[int | None] = loop.create_future()
        self._answer = answer
        timer = loop.call_later(_ACK_S, partial(self._resolve, None))
        try:
            self._send(chunk)
            return await answer
        finally:
            timer.cancel()
            self._answer = None
            self._awaited = (0, 0, "")

    def _resolve(self, upto: int | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(upto)

    def _add(self, key: AttemptKey) -> None:
        self._queue[key] = None
        self._wake.set()


def leftovers(folder: Path) -> list[AttemptKey]:
    """Return the attempts whose logs an earlier agent has left, oldest first. Blocks; call it before attempts run."""
    found: set[AttemptKey] = set()
    for path in folder.glob("*/*"):
        parsed = parse_log_name(path.name)
        if parsed is not None:
            found.add(parsed[:2])
    return sorted(found)


def _claim_folder(folder: Path, ledger_id: str) -> bool:
    """Note whose logs lie here; ``False`` if they were another ledger's: then the old ones are removed."""
    path = folder / _LEDGER_FILE
    known = path.read_text("utf-8") if path.exists() else ""
    if known == ledger_id:
        return True
    if known:
        _remove(path for path in folder.glob("*/*") if parse_log_name(path.name) is not None)
    draft = path.with_suffix(".new")
    draft.write_text(ledger_id, "utf-8")
    draft.replace(path)
    return not known


def _read(path: Path, offset: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, max(0, min(LOG_CHUNK_BYTES, MAX_LOG_BYTES - offset)), offset)
    finally:
        os.close(descriptor)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # what stays is sent once more by the next agent, and harms nothing
            path.unlink()
