"""The service that the promises are proven with: so small that Fleet itself is all there is to see."""

import os
from pathlib import Path

from dask_fleet import Service

service = Service("tiny")


def note_start(text: str) -> None:
    """Append a line to the file of starts: one write, so that lines of several processes do not mix."""
    with Path(os.environ["TINY_STARTS"]).open("ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


@service.endpoint
def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


@service.endpoint
def once(n: int) -> dict[str, int]:
    """Note that it was started, and by which process."""
    note_start(str(n))
    return {"n": n, "pid": os.getpid()}
