"""What a process writes past Python, through a real pipe: bounded, counted, and its end kept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from dask_fleet.agent import stray_output
from dask_fleet.agent.allowance import STORE_BYTES
from dask_fleet.agent.stray_output import StrayOutput

PATIENCE_S = 60.0
MIB = 1 << 20


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.01)


async def heard(program: str) -> StrayOutput:
    """Run a program that writes past Python, to its end."""
    ours, theirs = os.pipe()
    stray = StrayOutput(ours)
    stray.watch("worker-7")
    process = subprocess.Popen([sys.executable, "-c", f"import os\n{program}"], stdout=theirs, stderr=theirs)  # noqa: ASYNC220
    os.close(theirs)
    try:
        await until(lambda: process.poll() is not None)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    stray.drain()
    return stray


def dropped(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.dropped_bytes for record in caplog.records if getattr(record, "action", "") == "output_dropped"]


def test_what_is_written_is_passed_on_and_its_end_kept(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stray = asyncio.run(heard("os.write(1, b'one\\n'); os.write(2, b'x' * 5000 + b'two')"))
    assert capfd.readouterr().err == "one\n" + "x" * 5000 + "two"
    assert stray.since(0.0) == "x" * 4093 + "two"
    assert stray.since(1e12) == ""
    assert not dropped(caplog)


def test_a_flood_is_dropped_and_counted_and_holds_nobody_up(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stray = asyncio.run(heard(f"for _ in range(64): os.write(1, b'y' * {MIB})\nos.write(2, b'the last words')"))
    kept = len(capfd.readouterr().err.removesuffix("\n"))
    assert STORE_BYTES <= kept < 2 * STORE_BYTES
    assert sum(dropped(caplog)) == 64 * MIB + len("the last words") - kept
    assert stray.since(0.0).endswith("yyythe last words")


def test_after_a_flood_it_is_heard_again(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stray_output, "DEAF_S", 0.2)

    async def scene() -> None:
        ours, theirs = os.pipe()
        stray = StrayOutput(ours)
        stray.watch("worker-7")
        try:
            await asyncio.to_thread(os.write, theirs, b"y" * (3 * MIB))
            await until(lambda: dropped(caplog))
            os.write(theirs, b"again")
            await until(lambda: stray.since(0.0).endswith("again"))
        finally:
            os.close(theirs)
            stray.drain()

    asyncio.run(scene())
    assert capfd.readouterr().err.endswith("again")


def test_without_a_descriptor_to_spare_a_flood_is_read(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stray_output.os, "devnull", "/nonexistent/null")
    asyncio.run(heard(f"os.write(1, b'y' * {4 * MIB})"))
    kept = len(capfd.readouterr().err.removesuffix("\n"))
    assert STORE_BYTES <= kept < 2 * STORE_BYTES
    assert sum(dropped(caplog)) == 4 * MIB - kept
