"""A process forked from the agent's forkserver: what it says is heard to the end, and garbage ends it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from typing import Any, TypeVar

import pytest

from dask_fleet.agent.forker import Forker
from dask_fleet.agent.worker_frames import FromWorker, decode_from_worker
from dask_fleet.protocol.frames import Loaded, encode_prefixed

T = TypeVar("T")
PATIENCE_S = 60.0
HELLO = Loaded({"service": "version"}, {})


def says_and_leaves(channel: socket.socket, times: int) -> None:
    channel.sendall(encode_prefixed(HELLO) * times)
    os._exit(7)


def says_garbage_and_stays(channel: socket.socket) -> None:
    channel.sendall(encode_prefixed(HELLO) + b"\0\0\0\1\xc1")
    while channel.recv(1):
        pass


def _hear(target: Any, *args: object) -> tuple[list[FromWorker], int | None]:
    async def hear(forker: Forker) -> tuple[list[FromWorker], int | None]:
        said: list[FromWorker] = []
        ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        child = await forker.fork(target, *args, name="child", decode=decode_from_worker)
        child.watch(said.append, ended.set_result)
        try:
            async with asyncio.timeout(PATIENCE_S):
                code = await ended
        finally:
            child.kill()
        assert child.ended
        child.send(HELLO)  # lost, and no error
        return said, code

    return _run(hear)


def _run(scene: Callable[[Forker], Coroutine[None, None, T]]) -> T:
    with ThreadPoolExecutor(1) as thread:
        try:
            return asyncio.run(scene(Forker(thread)))
        finally:
            thread.submit(forkserver._forkserver._stop).result()  # type: ignore[attr-defined]


def test_all_that_it_said_is_heard_before_its_exit() -> None:
    said, code = _hear(says_and_leaves, 10_000)
    assert said == [HELLO] * 10_000
    assert code == 7


def test_how_it_ended_is_told_also_if_another_is_forked_before_anybody_asks() -> None:
    """As under load: the loop comes to a dead process only after the fork of its successor."""

    async def scene(forker: Forker) -> list[int | None]:
        first = await forker.fork(says_and_leaves, 0, name="first", decode=decode_from_worker)
        assert select.select([first._notice.sentinel], [], [], PATIENCE_S)[0]
        second = await forker.fork(says_and_leaves, 0, name="second", decode=decode_from_worker)
        codes: asyncio.Queue[int | None] = asyncio.Queue()
        for child in (first, second):
            child.watch(lambda _: None, codes.put_nowait)
        async with asyncio.timeout(PATIENCE_S):
            return [await codes.get(), await codes.get()]

    assert _run(scene) == [7, 7]


def test_who_sends_what_is_no_frame_is_killed_after_what_it_said_before(caplog: pytest.LogCaptureFixture) -> None:
    said, code = _hear(says_garbage_and_stays)
    assert said == [HELLO]
    assert code == -9
    assert [record.action for record in caplog.records if hasattr(record, "action")] == ["child_not_understood"]
