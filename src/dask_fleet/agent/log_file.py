"""The agent's own log file, which its standard output and error are: another one is begun when it is large."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from dask_fleet.observability.rotation import open_log, rotate

log = logging.getLogger(__name__)

MAX_LOG_FILE_BYTES = 16 << 20
"""With those kept of the ones before, 64 MiB."""
LOOK_EVERY_S = 2.0


async def keep_small(path: Path) -> None:
    """Look after the file at `path` until cancelled."""
    while True:
        try:
            rotate_if_large(path)
        except OSError as exc:  # a full disk: it may be better next time
            log.warning("the log could not be rotated: %s", exc, extra={"action": "log_not_rotated"})
        await asyncio.sleep(LOOK_EVERY_S)


def rotate_if_large(path: Path) -> bool:
    """Begin another file if standard error is a large one; returns whether it was.

    What has inherited the old one goes on with it: the forkserver and guards, which hardly say anything.
    """
    now = os.fstat(2)
    if now.st_size < MAX_LOG_FILE_BYTES:
        return False
    try:
        is_there = os.path.samestat(now, path.stat())
    except FileNotFoundError:
        is_there = False
    if is_there:  # else somebody else has moved it
        rotate(path)
    made = open_log(path)
    try:
        os.dup2(made, 1)
        os.dup2(made, 2)
    finally:
        os.close(made)
    return True
