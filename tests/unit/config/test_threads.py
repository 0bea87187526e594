"""Threads for calls that block."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dask_fleet.config.threads import have_threads, started
from dask_fleet.model.errors import SetupError


def named() -> int:
    return sum(thread.name.startswith("blocking") for thread in threading.enumerate())


def test_all_are_there_from_the_start_and_no_more_come() -> None:
    release = threading.Event()

    async def scene() -> None:
        assert named() == 3
        calls = [asyncio.create_task(asyncio.to_thread(release.wait, 30)) for _ in range(10)]
        await asyncio.sleep(0)
        assert named() == 3
        release.set()
        assert await asyncio.gather(*calls) == [True] * 10

    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(started(3, "blocking"))
        runner.run(scene())
    assert named() == 0


def test_an_event_loop_has_a_few_more_than_there_are_cpus() -> None:
    with asyncio.Runner() as runner:
        have_threads(runner.get_loop())
        assert 5 <= named() <= 32
    assert named() == 0


def test_what_was_started_ends_if_the_host_gives_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, 2

    def start_two(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(SetupError, match="gives no more threads"):
        started(3, "blocking")
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("blocking")]:
        thread.join(10)
    assert named() == 0
