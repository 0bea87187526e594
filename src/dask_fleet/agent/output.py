"""What attempts write, on its way to their files: buffered, appended a few times a second, at most `MAX_LOG_BYTES` a stream.

An attempt that writes nothing costs nothing: no file, no buffer, no thread.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from dask_fleet.model.logs import MAX_LOG_BYTES, LogStream, log_path, whole_characters

log = logging.getLogger(__name__)

FLUSH_S = 0.2
"""How long what is written waits here at most: what a killed process loses."""
_FLUSH_CHARS = 64 << 10
"""Whoever fills the buffer so far empties it himself: a flood waits for the disk and not in memory."""
_NOTE_BYTES = 120
"""Kept free for the line that says that something was dropped."""

current: ContextVar[AttemptOutput | None] = ContextVar("fleet_attempt_output", default=None)
"""Whose output is written here: the attempt that this code runs for."""

Piece = str | bytes
STREAMS = tuple(LogStream)
STDOUT, STDERR, LOG = range(3)
"""Places in `STREAMS`."""


class StreamLog:
    """One stream of one attempt. Any thread may write, also from a finalizer while this very thread writes."""

    __slots__ = (
        "_append",
        "_lock",
        "_mark",
        "_marked",
        "_parts",
        "_path",
        "_pending",
        "_taking",
        "_written",
        "dropped",
        "full",
    )

    def __init__(self, path: Path, mark: Callable[[], None]) -> None:
        self._path = path
        self._mark = mark
        # Of draining. Reentrant: the garbage collector may call a finalizer that prints, anywhere in here.
        self._lock = threading.RLock()
        self._parts: deque[Piece] = deque()
        self._append = self._parts.append
        self._pending = 0
        self._marked = False
        self._taking = True
        """Whether text is kept: neither full nor ended."""
        self._written = -1
        """Bytes in the file; -1 before there is one."""
        self.full = False
        self.dropped = 0
        """Bytes that were not kept."""

    @property
    def written(self) -> int:
        """Bytes in the file."""
        return max(self._written, 0)

    def write(self, text: Piece) -> bool:
        """Take text; ``False`` if the attempt has ended. Printing comes by here, twice a line: no lock, no call."""
        if not self._taking:
            if self.full:
                self.dropped += _size(text)
            return self.full
        self._append(text)
        # Two threads may each miss what the other adds: then the buffer is emptied a little later.
        self._pending = pending = self._pending + len(text)
        if pending >= _FLUSH_CHARS:
            self.drain()
        elif not self._marked:
            self._marked = True
            self._mark()
        return True

    def drain(self) -> None:
        """Bring what is here into the file."""
        with self._lock:
            self._marked = False
            self._pending = 0
            take = self._parts.popleft
            parts = [take() for _ in range(len(self._parts))]
            if not parts or self.full:
                self.dropped += sum(_size(part) for part in parts)
                return
            data = _encode(parts)
            room = MAX_LOG_BYTES - _NOTE_BYTES - max(self._written, 0)
            if len(data) <= room:
                self._put(data)
                return
            kept = data[: whole_characters(data[:room])]
            self.full = True
            self._taking = False
            self.dropped += len(data) - len(kept)
            line_end = b"" if kept.endswith(b"\n") else b"\n"
            self._put(kept + line_end + b"[dask-fleet: only the first MiB of a stream is kept")

    def close(self) -> None:
        """Bring all into the file; what comes later is refused."""
        with self._lock:
            self._taking = False
            self.drain()
            if self.full:
                self._put(b"; %d bytes were dropped]\n" % self.dropped)
            self.full = False  # nothing is counted any more

    def abandon(self) -> None:
        """Take nothing more and write nothing more: in a forked child, whose parent does."""
        self._taking = self.full = False

    def _put(self, data: bytes) -> None:
        # Opened for each append, some five times a second: no descriptor is held that user code could close or inherit.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._written < 0:
            flags |= os.O_TRUNC  # what an attempt of that name left in an earlier life of the folder
        rest = memoryview(data)
        try:
            descriptor = _open(self._path, flags)
            try:
                self._written = max(self._written, 0)
                while rest:
                    count = os.write(descriptor, rest)
                    self._written += count
                    rest = rest[count:]
            finally:
                os.close(descriptor)
        except OSError as exc:  # a full disk must not fail the job
            if not self.dropped:
                log.warning("output of a job is lost: %s", exc, extra={"action": "output_lost", "file": self._path.name})
            self.dropped += len(rest)


_NO_STREAMS: Sequence[StreamLog | None] = (None, None, None)


class AttemptOutput:
    """What one attempt writes."""

    __slots__ = ("_grown", "_recorder", "attempt", "closed", "run", "seq", "streams")

    def __init__(self, recorder: Recorder, seq: int, run: int, attempt: int) -> None:
        self._recorder = recorder
        self.seq = seq
        self.run = run
        self.attempt = attempt
        self.streams = _NO_STREAMS
        """In the order of `LogStream`; those that nothing was written to are ``None``, with most attempts all."""
        self.closed = False
        self._grown = False

    @property
    def written(self) -> int:
        """Bytes in all its files."""
        if self.streams is _NO_STREAMS:
            return 0
        return sum(stream.written for stream in self.streams if stream is not None)

    def enter(self) -> None:
        """Make this the place of what the present context writes."""
        current.set(self)

    def write(self, stream: int, text: Piece) -> bool:
        """Take text for one of the streams; ``False`` if the attempt has ended and somebody else must have it."""
        found = self.streams[stream]
        if found is None:
            if not text:
                return not self.closed
            found = self._recorder.open(self, stream)
            if found is None:
                return False
        return found.write(text)

    def mark(self) -> None:
        """Something waits here to be written."""
        self._grown = True
        self._recorder.mark(self)

    def flush(self) -> None:
        """Bring all into the files, and say so."""
        self._grown = False
        for stream in self.streams:
            if stream is not None:
                stream.drain()
        self._recorder.announce(self)

    def close(self) -> None:
        """The attempt ends: all goes into the files, and what is written later is not the attempt's."""
        self.closed = True
        # Whoever opens a stream at this moment looks at `closed` after that: one of the two sees the other.
        if self.streams is _NO_STREAMS:
            return
        self._recorder.forget(self)
        for stream in self.streams:
            if stream is not None:
                stream.close()
        if self._grown:
            self._recorder.announce(self)

    def abandon(self) -> None:
        """Write nothing in a forked child: the parent does."""
        self.closed = True
        for stream in self.streams:
            if stream is not None:
                stream.abandon()


class Recorder:
    """Keeps the output of all attempts of this process.

    Parameters
    ----------
    folder
        ``DATA_DIR/logs``.
    announce
        Told, from any thread and some five times a second at most, that an attempt's files have grown.
    """

    def __init__(self, folder: Path, announce: Callable[[AttemptOutput], None]) -> None:
        self.announce = announce
        self._folder = folder
        self._lock = threading.RLock()  # a finalizer may print while this very thread is in here
        self._writing: set[AttemptOutput] = set()
        self._dirty: set[AttemptOutput] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_child = False
        os.register_at_fork(after_in_child=partial(_abandon, weakref.ref(self)))

    def output(self, seq: int, run: int, attempt: int) -> AttemptOutput:
        """Return the place of an attempt's output."""
        return AttemptOutput(self, seq, run, attempt)

    def open(self, output: AttemptOutput, stream: int) -> StreamLog | None:
        """Make the place of a stream at its first text; ``None`` if the attempt has ended."""
        if self._is_child:
            return None
        with self._lock:
            found = output.streams[stream]
            if found is None:
                path = self._folder / log_path(output.seq, output.attempt, STREAMS[stream])
                found = StreamLog(path, output.mark)
                output.streams = [found if n == stream else other for n, other in enumerate(output.streams)]
            if output.closed:
                found.close()
                return None
            self._writing.add(output)
            if self._thread is None:
                self._thread = threading.Thread(target=self._flush_forever, name="output", daemon=True)
                contextvars.Context().run(self._thread.start)  # of no job, whoever was the first to write
        return found

    def mark(self, output: AttemptOutput) -> None:
        """Write it soon."""
        self._dirty.add(output)
        self._wake.set()

    def forget(self, output: AttemptOutput) -> None:
        """It has ended."""
        with self._lock:
            self._writing.discard(output)

    def _flush_forever(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(FLUSH_S)
            self._wake.clear()
            while self._dirty:
                output = self._dirty.pop()
                if output.closed:
                    continue
                try:
                    output.flush()
                except OSError:
                    return  # the agent is gone, and with it this process
                except Exception:  # whatever it was, the others' output still has to be written
                    log.warning("output of a job is lost", exc_info=True, extra={"action": "output_lost"})

    def abandon(self) -> None:
        """Take nothing more: in a forked child nobody flushes, and the parent writes what the buffers hold."""
        self._is_child = True
        for output in self._writing:
            output.abandon()


def _abandon(recorder: weakref.ref[Recorder]) -> None:
    if (found := recorder()) is not None:
        found.abandon()


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _encode(parts: list[Piece]) -> bytes:
    try:
        return "".join(parts).encode("utf-8", "backslashreplace")  # type: ignore[arg-type]
    except TypeError:  # bytes among them
        return b"".join(part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace") for part in parts)


def _size(text: Piece) -> int:
    if isinstance(text, bytes) or text.isascii():
        return len(text)
    return len(text.encode("utf-8", "backslashreplace"))
