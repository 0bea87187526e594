"""Sending logs to a server far away: in order, one chunk at a time, until all of it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dask_fleet.agent import log_shipping
from dask_fleet.agent.log_shipping import LogShipper, leftovers
from dask_fleet.model.logs import LOG_CHUNK_BYTES, MAX_LOG_BYTES, LogStream, log_path
from dask_fleet.protocol.frames import LogAck, LogChunk


class Bench:
    """A shipper, and a server that is a dictionary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: list[LogChunk] = []
        self.files: dict[tuple[int, int, str], bytes] = {}
        self.answers = True
        self.shipper = LogShipper(folder, send=self._take, left=leftovers(folder), moved=lambda: None)

    def _take(self, chunk: LogChunk) -> None:
        self.sent.append(chunk)
        if self.answers:
            self.answer(chunk)

    def answer(self, chunk: LogChunk) -> None:
        key = (chunk.seq, chunk.attempt, chunk.stream)
        there = self.files.get(key, b"")
        if chunk.offset <= len(there):
            there = self.files[key] = there[: chunk.offset] + chunk.data
        self.shipper.acknowledged(LogAck(*key, len(there)))

    def write(self, seq: int, data: bytes, stream: LogStream = LogStream.STDOUT) -> Path:
        path = self.folder / log_path(seq, 1, stream)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
        return path


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds, none with an event
            await asyncio.sleep(0.002)


def run(folder: Path, test: Callable[[Bench], Awaitable[None]], *, before: Callable[[Path], Any] | None = None) -> None:
    async def main() -> None:
        if before is not None:
            before(folder)
        bench = Bench(folder)
        task = asyncio.create_task(bench.shipper.run())
        try:
            await test(bench)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    folder.mkdir(exist_ok=True)
    asyncio.run(main())


def test_it_sends_what_grows_and_removes_what_has_ended(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.shipper.welcomed("l")
        path = bench.write(7, b"x" * (2 * LOG_CHUNK_BYTES + 5))
        bench.shipper.grew(7, 3, 1)
        await until(lambda: not bench.shipper.busy)
        assert [(chunk.run, chunk.offset, len(chunk.data)) for chunk in bench.sent] == [
            (3, 0, LOG_CHUNK_BYTES),
            (3, LOG_CHUNK_BYTES, LOG_CHUNK_BYTES),
            (3, 2 * LOG_CHUNK_BYTES, 5),
        ]
        assert path.exists()
        bench.write(7, b"more")
        other = bench.write(7, b"err", LogStream.STDERR)
        bench.shipper.ended((7, 1))
        await until(lambda: not path.exists())
        await until(lambda: not other.exists())
        assert bench.files == {(7, 1, "stdout"): b"x" * (2 * LOG_CHUNK_BYTES + 5) + b"more", (7, 1, "stderr"): b"err"}

    run(tmp_path, main)


def test_an_attempt_that_wrote_nothing_costs_nothing(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.shipper.welcomed("l")
        bench.shipper.ended((1, 1))
        assert not bench.shipper.busy

    run(tmp_path, main)


def test_a_lost_connection_and_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_shipping, "_ACK_S", 0.05)
    monkeypatch.setattr(log_shipping, "_PAUSE_S", 0.01)

    async def main(bench: Bench) -> None:
        bench.write(1, b"hello")
        bench.shipper.grew(1, 1, 1)  # before there is any server
        await asyncio.sleep(0)
        assert bench.sent == []
        bench.answers = False
        bench.shipper.welcomed("l")
        await until(lambda: len(bench.sent) >= 3)  # again and again
        bench.shipper.lost()
        known = len(bench.sent)
        bench.answers = True
        assert bench.shipper.busy
        bench.shipper.acknowledged(LogAck(1, 1, "stdout", 5))  # of a connection that is gone
        bench.shipper.welcomed("l")
        await until(lambda: not bench.shipper.busy)
        assert len(bench.sent) > known
        assert bench.files == {(1, 1, "stdout"): b"hello"}

    run(tmp_path, main)


def test_a_server_that_refuses_is_not_asked_again(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.answers = False
        bench.shipper.welcomed("l")
        path = bench.write(1, b"hello")
        bench.shipper.grew(1, 1, 1)
        await until(lambda: bench.sent)
        bench.shipper.ended((1, 1))
        bench.shipper.acknowledged(LogAck(1, 1, "stdout", MAX_LOG_BYTES))
        await until(lambda: not path.exists())
        assert len(bench.sent) == 1

    run(tmp_path, main)


def test_a_server_that_lost_a_part_gets_it_again(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.shipper.welcomed("l")
        bench.write(1, b"hello ")
        bench.shipper.grew(1, 1, 1)
        await until(lambda: not bench.shipper.busy)
        bench.files.clear()
        bench.write(1, b"world")
        bench.shipper.grew(1, 1, 1)
        await until(lambda: bench.files == {(1, 1, "stdout"): b"hello world"})

    run(tmp_path, main)


def left_behind(folder: Path) -> None:
    path = folder / log_path(5, 1, LogStream.LOG)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"left")


def test_what_an_agent_before_has_left_is_sent(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.shipper.welcomed("l")
        await until(lambda: not bench.shipper.busy and leftovers(tmp_path) == [])
        assert bench.files == {(5, 1, "log"): b"left"}

    run(tmp_path, main, before=left_behind)


def test_another_ledgers_logs_are_not_sent(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.shipper.welcomed("another")
        await until(lambda: not bench.shipper.busy and leftovers(tmp_path) == [])
        assert bench.sent == []
        assert (tmp_path / "ledger").read_text() == "another"

    (tmp_path / "ledger").write_text("one")
    run(tmp_path, main, before=left_behind)
