"""Functions that sleep, fail, hang and die, for the tests of what survives."""

import os
import signal
import time
from pathlib import Path

from dask_fleet import Service, cancelled, progress

service = Service("core")


def note(text: str) -> None:
    """Append a line to the file of starts."""
    with Path(os.environ["CORE_STARTS"]).open("ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def wait_for_gate(name: str) -> None:
    """Hold until the test makes a file of that name, and so long that none is given to the agent ahead, behind this one."""
    time.sleep(0.1)
    gate = Path(os.environ["CORE_STARTS"]).with_name(name)
    deadline = time.monotonic() + 60
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)


@service.endpoint(timeout="2m")
def gated(name: str) -> str:
    """Run until the gate opens."""
    note(name)
    wait_for_gate(name)
    return name


@service.endpoint(timeout="2m")
def numbered(name: str) -> int:
    """Return which start of that name this is, once the gate of this one (``<name>-<number>``) opens; note that it ends."""
    note(name)
    number = Path(os.environ["CORE_STARTS"]).read_text().splitlines().count(name)
    wait_for_gate(f"{name}-{number}")
    note(f"{name}-{number} ended")
    return number


@service.endpoint
def quick(name: str) -> str:
    """Note the start and be done."""
    note(name)
    return name


@service.endpoint(cache="1s")
def fleeting(name: str) -> float:
    """Be kept for a second."""
    note(name)
    return time.time()


@service.endpoint(retries=2)
def flaky(name: str, failures: int) -> str:
    """Fail that often, then succeed."""
    note(name)
    starts = Path(os.environ["CORE_STARTS"]).read_text().splitlines().count(name)
    if starts <= failures:
        raise ValueError(f"start {starts} fails")
    return name


@service.endpoint(timeout="1s")
def endless(name: str) -> str:
    """Heed the wish to end, after the time is up."""
    note(name)
    while not cancelled():
        time.sleep(0.01)
    return "late"


@service.endpoint(timeout="1s")
def deaf(name: str) -> str:
    """Heed nothing when the time is up."""
    note(name)
    time.sleep(600)
    return name


@service.endpoint
def cooperative(name: str) -> str:
    """Run until cancelled."""
    note(name)
    while not cancelled():
        time.sleep(0.01)
    return "ended by itself"


@service.endpoint
def stubborn(name: str) -> str:
    """Heed nothing."""
    note(name)
    while True:
        pass


@service.endpoint
def measured(name: str) -> str:
    """Tell how far it is, and wait there."""
    progress(3, 10, "a third")
    note(name)
    wait_for_gate(name)
    return name


@service.endpoint
def large(name: str, size: int) -> bytes:
    """Give that many bytes."""
    note(name)
    return b"\x07" * size


@service.endpoint
def nap(name: str) -> str:
    """Take a moment, so that others run beside it."""
    note(name)
    time.sleep(0.1)
    return name


@service.endpoint
def poison(name: str) -> str:
    """Kill the process that runs it, after a moment beside others."""
    note(name)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
    return name


@service.endpoint
def parricide(name: str) -> str:
    """Kill the parent of the process that runs it, after a moment beside others."""
    note(name)
    time.sleep(0.05)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return name
