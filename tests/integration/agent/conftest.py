"""One agent for all tests that only call functions; those that kill make their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agent.fake_server import PATIENCE_S, AgentProcess, FakeServer, fleet


class Shared:
    """A fleet on a loop in a thread, so that sync tests share it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: FakeServer, agent: AgentProcess) -> None:
        self.loop, self.server, self.agent = loop, server, agent

    def do(self, work: Callable[[FakeServer], Awaitable[Any]]) -> Any:
        async def whole() -> Any:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await work(self.server)
            except TimeoutError as exc:  # the cause tells where it waited, and would be lost between the threads
                raise AssertionError(f"the scene did not end in {PATIENCE_S:g} s\n{self.agent.story()}") from exc

        return asyncio.run_coroutine_threadsafe(whole(), self.loop).result()


def shared_fleet(data_dir: Path, **options: Any) -> Iterator[Shared]:
    """A fleet for a fixture of wider scope."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-server")
    thread.start()
    context = fleet(data_dir, **options)
    try:
        server, agent = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(PATIENCE_S)
        try:
            yield Shared(loop, server, agent)
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def on_a_loop(
    context: AbstractAsyncContextManager[Any],
) -> Iterator[Callable[[Callable[[Any], Awaitable[Any]]], Any]]:
    """Enter an asynchronous context on a loop in a thread; gives a function that runs a scene with what it gave."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scenes")
    thread.start()

    def wait(coroutine: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(2 * PATIENCE_S):
                return await coroutine

        return asyncio.run_coroutine_threadsafe(bounded(), loop).result()

    try:
        given = wait(context.__aenter__())
        try:
            yield lambda scene: wait(scene(given))
        finally:
            wait(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker process with one thread."""
    yield from shared_fleet(tmp_path_factory.mktemp("one") / "data", nworkers=1, nthreads=1)


@pytest.fixture(scope="session")
def two_threads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One worker process with two threads."""
    yield from shared_fleet(tmp_path_factory.mktemp("two") / "data", nworkers=1, nthreads=2)
