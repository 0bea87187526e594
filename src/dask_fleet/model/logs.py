"""The log of an attempt: what it wrote, as up to three files of text in ``DATA_DIR/logs``."""

from __future__ import annotations

import re
from enum import StrEnum

MAX_LOG_BYTES = 1 << 20
"""Most that is kept of one stream of one attempt; what comes after is dropped and counted."""
LOG_CHUNK_BYTES = 64 << 10
"""Most that travels in one frame or is read at once."""
DEFAULT_LOGS_MAX_BYTES = 5 << 30
"""Most that all logs together take."""
LOG_FOLDER = "logs"
"""Within the data folder."""

_FILE_NAME = re.compile(r"([0-9]{1,18})-([0-9]{1,9})\.(stdout|stderr|log)\Z", re.ASCII)


class LogStream(StrEnum):
    """What a log is made of."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOG = "log"
    """Records of Python's ``logging``."""


def shard_of(seq: int) -> str:
    """Return the folder of a job's files within the folder of logs: no folder gets too many."""
    return f"{seq & 0xFF:02x}"


def log_path(seq: int, attempt: int, stream: LogStream) -> str:
    """Return where a stream of an attempt lies within the folder of logs."""
    return f"{shard_of(seq)}/{seq}-{attempt}.{stream}"


def parse_log_name(name: str) -> tuple[int, int, LogStream] | None:
    """Return job, attempt and stream of a log's file name, ``None`` for any other name."""
    found = _FILE_NAME.match(name)
    return (int(found[1]), int(found[2]), LogStream(found[3])) if found else None


def whole_characters(data: bytes) -> int:
    """Return how many bytes of UTF-8 `data` are whole characters: a last one that was cut in two is left out."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
    return len(data)
