"""Logs of jobs, as callers get them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_fleet.client.sse import JobEvent

STREAMS = ("stdout", "stderr", "log")


@dataclass(frozen=True, slots=True)
class LogText:
    """A piece of what an attempt wrote. As a string, it is the text."""

    attempt: int
    stream: str
    """``stdout``, ``stderr`` or ``log`` (records of Python's ``logging``)."""
    offset: int
    """Where it begins in the stream, in bytes."""
    text: str

    def __str__(self) -> str:
        return self.text


def logs_query(stream: str, attempt: int | None, tail: int | None) -> dict[str, str]:
    """Return the query that asks for logs.

    Raises
    ------
    ValueError
        If `stream` is none, or a number is below what makes sense.
    """
    if stream != "all" and stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)} or all, not {stream!r}")
    if (attempt is not None and attempt < 1) or (tail is not None and tail < 0):
        raise ValueError("attempt must be at least 1, and tail not negative")
    query: dict[str, Any] = {"stream": stream, "attempt": attempt, "tail": tail}
    return {name: str(value) for name, value in query.items() if value is not None}


class LogPlaces:
    """How far a follower has come: what a broken event stream is resumed with."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], int] = {}

    def note(self, event: JobEvent) -> None:
        """Take in a ``log`` event."""
        self._seen[event.attempt, str(event.data.get("stream"))] = int(event.data.get("next_offset") or 0)

    def query(self) -> str:
        """Return the value of ``logs_after``, empty at the beginning. Earlier attempts have ended; they are known whole."""
        latest = max((attempt for attempt, _ in self._seen), default=0)
        return ",".join(f"{n}-{stream}-{upto}" for (n, stream), upto in self._seen.items() if n >= latest - 1)


async def followed(
    events: AsyncGenerator[JobEvent, None], *, stream: str, attempt: int | None
) -> AsyncIterator[LogText]:
    """Yield the log texts of an event stream."""
    async with aclosing(events):
        async for event in events:
            if event.kind == "log" and stream in {"all", event.data.get("stream")} and attempt in {None, event.attempt}:
                data = event.data
                yield LogText(
                    event.attempt, str(data.get("stream")), int(data.get("offset") or 0), str(data.get("text") or "")
                )
