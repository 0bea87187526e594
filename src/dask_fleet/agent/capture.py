"""Sends what user code writes to the attempt it runs for: ``print``, ``sys.stderr``, ``logging``.

Whose text it is, a context variable says: coroutines and Dask tasks have it of themselves, and so do threads, which begin
with the attempt of whoever starts them (or, in an executor, hands over the call). What belongs to no attempt (imports, what
goes on after the end of a job, child processes) goes where it went before: to the log of the worker process. So does what
is written past Python to descriptors 1 and 2, by C code and by commands: a process carries many jobs, and nobody can say
whose it is.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TextIO

from dask_fleet.agent.output import LOG, STDERR, STDOUT, STREAMS, AttemptOutput, current
from dask_fleet.observability.logs import ROOT

_current = current.get


class _Binary(io.RawIOBase):
    """``sys.stdout.buffer``."""

    def __init__(self, stream: int, outer: TextIO) -> None:
        self._stream = stream
        self._outer = outer
        self.name = f"<{STREAMS[stream]}>"
        self.mode = "wb"

    def write(self, data: Any) -> int:
        output = current.get()
        taken = bytes(data)
        if output is None or not output.write(self._stream, taken):
            self._outer.flush()
            return int(self._outer.buffer.write(taken))
        return len(taken)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._outer.fileno()

    def flush(self) -> None:
        if current.get() is None:
            self._outer.flush()

    def close(self) -> None:
        """Stay open: others write here too."""


class JobStream(io.TextIOBase):
    """Stands for ``sys.stdout`` or ``sys.stderr`` of the process.

    Parameters
    ----------
    stream
        Which of the two: `STDOUT` or `STDERR`.
    outer
        The process's own; gets what no attempt has written.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True

    def __init__(self, stream: int, outer: TextIO) -> None:
        self._stream = stream
        self._outer = outer
        self.name = f"<{STREAMS[stream]}>"
        self.mode = "w"
        self.buffer = _Binary(stream, outer)

    def write(self, text: str) -> int:
        """Write to the log of the attempt; the bytes are there within `FLUSH_S`."""
        output = _current()
        if output is not None:
            log = output.streams[self._stream]
            if log is not None and type(text) is str and log.write(text):  # the short way: programs print a lot
                return len(text)
        return self._write(output, text)

    def _write(self, output: AttemptOutput | None, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if output is None or not output.write(self._stream, text):
            return self._outer.write(text)
        return len(text)

    def writable(self) -> bool:
        """Return ``True``."""
        return True

    def flush(self) -> None:
        """Do nothing within a job: programs flush after every line, and the log is written soon anyway."""
        output = current.get()
        if output is None or output.closed:
            self._outer.flush()

    def fileno(self) -> int:
        """Return the descriptor of the process's own stream: what is written there is not part of the job's log."""
        return self._outer.fileno()

    def isatty(self) -> bool:
        """Return ``False``: a log is no terminal."""
        return False

    def reconfigure(self, **_options: Any) -> None:
        """Accept and ignore: a log is UTF-8 whatever one job would like."""

    def close(self) -> None:
        """Stay open: others write here too."""


class JobLogHandler(logging.Handler):
    """Puts records of ``logging`` into the log of the attempt that made them."""

    def __init__(self) -> None:
        super().__init__()
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, unless it is Fleet's own or of no attempt."""
        output = current.get()
        if output is None or output.closed or _is_ours(record):
            return
        try:
            output.write(LOG, self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - formatting calls __str__ of user classes; logging never raises
            self.handleError(record)


def install() -> None:
    """Set this process up. Call it once, after its own logging is configured and before user code is imported."""
    sys.stdout = JobStream(STDOUT, sys.stdout)
    sys.stderr = JobStream(STDERR, sys.stderr)
    root = logging.getLogger()
    for handler in root.handlers:
        handler.addFilter(_is_of_the_process)
    root.addHandler(JobLogHandler())
    root.setLevel(logging.INFO)
    _follow_threads()


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == ROOT or record.name.startswith(f"{ROOT}.")


def _is_of_the_process(record: logging.LogRecord) -> bool:
    """Whether a record goes to the worker process's log: Fleet's own, and warnings of nobody's."""
    if _is_ours(record):
        return True
    output = current.get()
    return (output is None or output.closed) and record.levelno >= logging.WARNING


def _follow_threads() -> None:
    """Let threads that a job starts write into its log, and calls it hands to an executor as well, whoever made that."""
    start = threading.Thread.start
    submit = ThreadPoolExecutor.submit

    def start_in_job(thread: threading.Thread) -> None:
        output = current.get()
        if output is not None:
            thread.run = partial(_within, output, thread.run)  # type: ignore[method-assign]
        start(thread)

    def submit_in_job(executor: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        output = current.get()
        if output is None:
            return submit(executor, fn, *args, **kwargs)
        return submit(executor, _within, output, fn, *args, **kwargs)

    setattr(threading.Thread, "start", start_in_job)  # noqa: B010 - mypy would refuse the plain assignment
    setattr(ThreadPoolExecutor, "submit", submit_in_job)  # noqa: B010


def _within(output: AttemptOutput, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = current.set(output)
    try:
        return fn(*args, **kwargs)
    finally:
        current.reset(token)
