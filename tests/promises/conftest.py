"""What the promises share: the tiny service, and twins of the fleet that are broken on purpose."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.promises.form import Serve, Starts
from tests.promises.survivors import Survivors

from dask_fleet.testing.served import ServedFleet

HERE = Path(__file__).parent


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Return a maker of fleets, of the tiny service unless told otherwise: an honest one, or the twin of that name."""

    def make(*, twin: str | None = None, **options: Any) -> ServedFleet:
        if twin is not None:
            options["command"] = (sys.executable, str(HERE / "twins.py"), twin)
        options.setdefault("args", ("--nworkers", "2"))
        env = {"TINY_STARTS": str(tmp_path / "starts"), **options.pop("env", {})}
        service = options.pop("service", HERE / "service_tiny.py")
        return ServedFleet([service], tmp_path / "data", env=env, **options)

    return make


@pytest.fixture
def survivors(tmp_path: Path) -> Callable[..., Survivors]:
    """Return a maker of fleets whose jobs outlast their processes; several need names."""

    def make(name: str = "", **options: Any) -> Survivors:
        return Survivors(tmp_path / name, **options)

    return make


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    """Return a reader of the lines that started functions have written."""

    def read() -> list[str]:
        path = tmp_path / "starts"
        return path.read_text().split() if path.exists() else []

    return read


@pytest.fixture(scope="session")
def many_sockets() -> None:
    """Allow this process (and the server it starts) two sockets for each of a thousand callers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
