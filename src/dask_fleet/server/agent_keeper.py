"""Looks after the local agent while the server runs: starts another where it is gone, or of another version."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from dask_fleet.controller.controller import Controller
from dask_fleet.plugins.backend import Backend, Health
from dask_fleet.protocol.frames import Introduction

log = logging.getLogger(__name__)

CHECK_S = 1.0


@contextlib.asynccontextmanager
async def kept_alive(backend: Backend, controller: Controller) -> AsyncIterator[None]:
    """Start the local agent again whenever it is gone, and put one of this version into the place of one that is refused.

    After a kill of the server and an upgrade, the agent of before is still there, for it lives on by design, and holds the
    lock of the data folder until it gives up.
    """
    refused: list[Introduction] = []
    news = asyncio.Event()

    def on_refused(who: Introduction) -> None:
        refused[:] = [who]  # the last is enough: the others will come again
        news.set()

    async def look() -> None:
        if refused:
            who = refused.pop()
            if await backend.dismiss(who.pid):
                controller.sessions.ended(who.agent)
                await backend.start()
        elif await backend.health() is Health.GONE:
            log.error("the local agent is gone: starting another", extra={"action": "agent_respawned"})
            await backend.start()

    async def watch() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await news.wait()
            news.clear()
            if controller.draining:
                continue
            try:
                await look()
            except OSError:  # a full disk, no process left: it may be better in a moment
                log.exception("no local agent could be started", extra={"action": "agent_not_started"})

    controller.sessions.on_refused = on_refused
    task = asyncio.create_task(watch(), name="agent-keeper")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
