"""The service that the promises are proven with: so small that Fleet itself is all there is to see."""

import os
import time
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


@service.endpoint
def gated(n: int) -> int:
    """Wait until the test opens the gate; tell the how-manieth start this is."""
    note_start(str(n))
    start = len(Path(os.environ["TINY_STARTS"]).read_text().split())
    gate, deadline = Path(os.environ["TINY_STARTS"] + ".gate"), time.monotonic() + 60
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return start


@service.endpoint
def blob(mib: int) -> bytes:
    """So many mebibytes."""
    return bytes(mib << 20)
