"""Worker processes, seen from the agent: spoken to over a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import termios
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

from dask_fleet.agent import forked
from dask_fleet.agent.attempts import Attempt, AttemptKey
from dask_fleet.agent.deaths import Death
from dask_fleet.agent.last_words import LastWords
from dask_fleet.agent.vitals import KILL_AT, Vitals
from dask_fleet.agent.worker_frames import FromWorker, decode_from_worker
from dask_fleet.model.placement import MAX_ATTEMPTS
from dask_fleet.protocol.frames import Frame, Load, Start, encode_prefixed

log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 18


class WorkerProcess:
    """A living worker process and what it carries.

    `on_frame` gets each frame of it. `on_exit` is called once, after its last frame, when it has ended: with its exit code,
    negative for a signal, or ``None`` if its forkserver died with it.
    """

    def __init__(
        self,
        process: ForkServerProcess,
        channel: socket.socket,
        words: LastWords,
        *,
        name: str,
        token: str,
        nthreads: int,
        alone: bool = False,
        for_lease: bool = False,
    ) -> None:
        self.name = name
        self.nthreads = nthreads
        self._most_attempts = max(MAX_ATTEMPTS, nthreads)
        self.pid = process.pid or 0
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.versions: dict[str, str] | None = None
        """What it has loaded; ``None`` before it has said so."""
        self.problems: dict[str, str] = {}
        self.generation = 0
        """Of the welcome it loaded for."""
        self.retiring = False
        """Gets no new attempts and is replaced after its last one."""
        self.alone = alone
        """Whether it is for one suspect only."""
        self.for_lease = for_lease
        """Whether it is for one Dask worker only."""
        self.tenant: str | None = None
        """Whom it serves: the first it has served, for its whole life."""
        self.leases: set[str] = set()
        """Slot leases whose Dask workers it carries."""
        self.lent = 0
        """Threads of these, less those that attempts have given away for good."""
        self.limit_bytes: int | None = None
        """Memory it may have, where that is not the agent's: 0 for no limit."""
        self.kill_at = KILL_AT
        """The part of its limit at which it is killed."""
        self.death: Death | None = None
        """Why the agent killed it, if it did; told to the attempts that were in it."""
        self.vitals = Vitals(self.pid)
        self.words = words
        self.token = token
        """What the names of its spool files begin with."""
        self._process = process
        self._channel = channel
        self._received = bytearray()
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._on_frame: Callable[[WorkerProcess, FromWorker], None] | None = None
        self._on_exit: Callable[[WorkerProcess, int | None], None] | None = None

    def watch(
        self,
        on_frame: Callable[[WorkerProcess, FromWorker], None],
        on_exit: Callable[[WorkerProcess, int | None], None],
    ) -> None:
        """Begin to listen."""
        self._on_frame, self._on_exit = on_frame, on_exit
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._loop.add_reader(self.words.fileno(), self._listen)
        # The pipe from the forkserver, not the end of the socket pair, says that it has ended: what the user's code has
        # forked may hold the socket open.
        self._loop.add_reader(self._process.sentinel, self._exited)

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self._ended

    @property
    def load(self) -> int:
        """Threads that attempts and Dask workers have of it."""
        return len(self.attempts) + self.lent

    @property
    def ready(self) -> bool:
        """Whether it has loaded its services and is to stay."""
        return self.versions is not None and not self.retiring

    @property
    def has_room(self) -> bool:
        """Whether it could take another attempt of something it has loaded."""
        return (
            self.versions is not None
            and not self.retiring
            and len(self.attempts) + self.lent < self.nthreads
            and len(self.attempts) < self._most_attempts
        )

    def takes(self, start: Start) -> bool:
        """Whether it has a free thread, has loaded that service, and serves that tenant or nobody yet."""
        return (
            self.versions is not None
            and len(self.attempts) + self.lent < self.nthreads
            and len(self.attempts) < self._most_attempts
            and not self.retiring
            and self.versions.get(start.service) == start.version
            and (self.tenant is None or self.tenant == start.tenant)
        )

    def start(self, attempt: Attempt, now: float) -> None:
        """Hand over an attempt."""
        attempt.placed(now)
        self.tenant = attempt.start.tenant
        self.attempts[attempt.key] = attempt
        self.send(attempt.start)

    def load_services(self, targets: list[str], generation: int) -> None:
        """Let it import services; answered by `Loaded`."""
        self.generation = generation
        self.send(Load(targets))

    def send(self, frame: Frame) -> None:
        """Send a frame; what the socket does not take now follows when it can."""
        data = encode_prefixed(frame)
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._channel.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it has died; its exit is about to be noticed
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def kill(self, death: Death | None = None) -> None:
        """Kill it together with what it has started; its exit is reported as any other. The first `death` told counts."""
        if self._ended:
            return
        self.retiring, self.death = True, self.death or death
        for kill in (os.killpg, os.kill):  # its group does not exist before it has made it
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def _writable(self) -> None:
        try:
            sent = self._channel.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
            sent = 0
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            data = self._channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            return
        self._take(data)

    def _listen(self) -> None:
        if not self.words.listen(self._loop.time()):
            self._loop.remove_reader(self.words.fileno())

    def _take(self, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if self._received:
            self._received += data
            buffer = self._received
        start, size = 0, len(buffer)
        with memoryview(buffer) as view:
            while size - start >= 4:
                end = start + 4 + int.from_bytes(view[start : start + 4], "big")
                if end > size:
                    break
                frame = decode_from_worker(view[start + 4 : end])
                start = end
                if self._on_frame is not None:
                    self._on_frame(self, frame)
        if buffer is self._received:
            del self._received[:start]
        elif start < size:
            self._received += data[start:]

    def _exited(self) -> None:
        """The forkserver tells its exit code, or is dead itself, and then so is the worker."""
        self._loop.remove_reader(self._process.sentinel)
        self._drain()
        self._loop.remove_reader(self.words.fileno())
        self.words.drain(self._loop.time())
        code = _exit_code(self._process)
        self.vitals.close()
        self._ended = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what the user's code has started must not outlive it
        self._process.join(0)
        self._process.close()
        forked.forget(self.pid)
        if self._on_exit is not None:
            self._on_exit(self, code)

    def _drain(self) -> None:
        """Take what it sent before it ended: an outcome that is here is no loss."""
        while True:
            try:
                data = self._channel.recv(_RECEIVE_BYTES)
            except OSError:
                return
            if not data:
                return
            self._take(data)


def _exit_code(process: ForkServerProcess) -> int | None:
    """Return the code that the forkserver has told; ``None`` if it died before.

    ``multiprocessing`` makes 255 of the latter, which a function can leave with, too: so look whether anything was told.
    """
    told = bytearray(4)
    fcntl.ioctl(process.sentinel, termios.FIONREAD, told)
    code = process.exitcode
    return code if any(told) else None
