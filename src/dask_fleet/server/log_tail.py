"""A follower's place in the logs of a job: what it has been told, and what has been written since."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import msgspec

from dask_fleet.controller.logs import JobLogs
from dask_fleet.model.errors import BadRequest
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.logs import LOG_CHUNK_BYTES, MAX_LOG_BYTES, LogStream, whole_characters
from dask_fleet.server.log_text import last_attempts

Place = tuple[int, LogStream]
"""An attempt and one of its streams."""


class LogTail:
    """Follows the logs of all attempts of a job.

    Parameters
    ----------
    told
        Up to which byte the follower has each stream; attempts before the first of these it has whole.
    """

    def __init__(self, logs: JobLogs, seq: int, told: Mapping[Place, int]) -> None:
        self._logs = logs
        self._seq = seq
        self._told = dict(told)
        self._from = min((attempt for attempt, _ in told), default=1)

    async def news(self, job: JobRecord) -> AsyncGenerator[bytes, None]:
        """Yield what has been written since the last time, as server-sent events, attempt by attempt."""
        if job.state.is_terminal:
            await self._logs.settle(self._seq, job.attempt)
        attempts = last_attempts(job.attempt)
        attempts = range(max(attempts.start, self._from), attempts.stop)
        for (attempt, stream), size in (await self._logs.sizes(self._seq, attempts)).items():
            # The last character may be there in part: of one that goes on, the rest is about to come.
            goes_on = attempt == job.attempt and not job.state.is_terminal
            while (told := self._told.get((attempt, stream), 0)) < size:
                data = await self._logs.read(self._seq, attempt, stream, told, told + LOG_CHUNK_BYTES)
                if goes_on or told + len(data) < size:
                    data = data[: whole_characters(data)]
                if not data:
                    break
                self._told[attempt, stream] = told + len(data)
                yield log_bytes(attempt, stream, told, data)
        self._from = max(self._from, job.attempt - 1)  # of the one before, an agent far away may still be sending


def log_bytes(attempt: int, stream: LogStream, offset: int, data: bytes) -> bytes:
    """Return a piece of a log as the event stream has it, with where it begins and ends in the stream, in bytes."""
    shown = {
        "attempt": attempt,
        "stream": stream.value,
        "offset": offset,
        "next_offset": offset + len(data),
        "text": data.decode("utf-8", "replace"),
    }
    return b"event: log\ndata: %s\n\n" % msgspec.json.encode(shown)


def parse_places(text: str) -> dict[Place, int]:
    """Return what ``?logs_after=1-stdout-4096,1-log-0`` says a follower has.

    Raises
    ------
    BadRequest
        If it is malformed.
    """
    told: dict[Place, int] = {}
    for item in text.split(",") if text else ():
        attempt, _, rest = item.partition("-")
        stream, _, offset = rest.partition("-")
        numbers = all(number.isascii() and number.isdigit() and len(number) <= 9 for number in (attempt, offset))
        if not numbers or stream not in set(LogStream) or int(offset) > MAX_LOG_BYTES:
            raise BadRequest(
                "the query parameter logs_after must be ATTEMPT-STREAM-OFFSET, several with commas, such as 1-stdout-4096"
            )
        told[int(attempt), LogStream(stream)] = int(offset)
    return told
