"""The stand-in server, and an environment in which nothing but the test says where it is."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FILE = Path(__file__).parent / "client" / "stub_server.py"
_SPEC = importlib.util.spec_from_file_location("stub_server", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
stub_server = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stub_server)


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with stub_server.running_stub() as stub:
        yield stub


@pytest.fixture
def stub(running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, as if new; the client's variables lead to it."""
    for name in [name for name in os.environ if name.startswith("FLEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEET_URL", running.url)
    monkeypatch.setenv("FLEET_TOKEN", stub_server.TOKEN)
    for held in (running.requests, running.faults, running.jobs, running.events, running.bodies):
        held.clear()
    running.break_stream_after, running.ranges = 0, True
    return running
