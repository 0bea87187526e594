"""What all tests share: nothing of a fleet may outlive the test (or the module's fixture) that started it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dask_fleet.testing.served import MARK, ServedFleet, marked_processes

FULL = os.environ.get("FLEET_PROMISES") == "full"


def leaked() -> list[str]:
    """Return the processes of fleets of this process that no open `ServedFleet` answers for."""
    found = []
    for process in marked_processes(f"{os.getpid()}-"):
        try:
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                marks = [part.partition(b"=")[2].decode() for part in file.read().split(b"\0") if part.startswith(MARK.encode())]
        except OSError:
            continue
        if not ServedFleet.running.intersection(marks):
            found.append(f"{process.pid} {process.command}")
    return found


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    left = leaked()
    assert not left, f"processes of a fleet outlived the test: {left}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long forms to `make promises`."""
    if FULL:
        return
    skip = pytest.mark.skip(reason="long form: FLEET_PROMISES=full")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skip)
