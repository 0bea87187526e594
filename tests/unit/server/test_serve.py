"""What `serve` keeps going."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dask_fleet.plugins.backend import Backend, Health
from dask_fleet.server import agent_keeper


class FullDisk(Backend):
    """An agent that is gone and cannot be started the first time."""

    def __init__(self) -> None:
        self.starts = 0
        self.started = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        if self.starts == 1:
            raise OSError(28, "No space left on device")
        self.started.set()

    async def health(self) -> Health:
        return Health.GONE

    async def stop(self, *, timeout_s: float) -> None:
        raise NotImplementedError


def test_an_agent_that_could_not_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_keeper, "CHECK_S", 0.001)

    async def scene() -> None:
        backend = FullDisk()
        controller = cast("Any", SimpleNamespace(draining=False, sessions=SimpleNamespace()))
        async with agent_keeper.kept_alive(backend, controller), asyncio.timeout(5):
            await backend.started.wait()

    asyncio.run(scene())
