"""The server's side of logs: what agents far away may write, and what is removed when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.controller.rig import Rig, outcome, run

from dask_fleet.controller.changes import Changes
from dask_fleet.controller.log_retention import LogSweeper, oldest, scan
from dask_fleet.controller.logs import JobLogs
from dask_fleet.model.logs import LOG_CHUNK_BYTES, MAX_LOG_BYTES, LogStream, log_path
from dask_fleet.protocol.frames import LogAck, LogChunk, LogGrown


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - conditions of many kinds, none with an event
        await asyncio.sleep(0.001)


def at_folder(rig: Rig, folder: Path) -> Rig:
    rig.controller.logs.folder = folder
    return rig


def write(folder: Path, seq: int, text: str, *, attempt: int = 1) -> Path:
    path = folder / log_path(seq, attempt, LogStream.STDOUT)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def chunk(seq: int, data: bytes = b"hello\n", **changed: Any) -> LogChunk:
    fields = {"seq": seq, "run": 1, "attempt": 1, "stream": "stdout", "offset": 0, "data": data, **changed}
    return LogChunk(**fields)


def test_chunks_are_written_where_they_belong_and_repeating_is_harmless(tmp_path: Path) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            at_folder(rig, tmp_path)
            side = rig.agent()
            job = await rig.submit("a")
            path = tmp_path / log_path(job.seq, 1, LogStream.STDOUT)

            async def put(frame: LogChunk) -> int:
                before = len(side.got(LogAck))
                rig.controller.sessions.receive(side.handle, [frame])
                await until(lambda: len(side.got(LogAck)) > before)
                ack = side.got(LogAck)[-1]
                assert (ack.seq, ack.attempt, ack.stream) == (job.seq, 1, "stdout")
                return ack.upto

            assert await put(chunk(job.seq)) == 6
            assert await put(chunk(job.seq)) == 6
            assert await put(chunk(job.seq, b"world\n", offset=6)) == 12
            assert await put(chunk(job.seq, b"hello\n")) == 12  # an old one, late
            assert await put(chunk(job.seq, b"gap", offset=100)) == 12
            assert path.read_bytes() == b"hello\nworld\n"
            assert path.stat().st_mode & 0o777 == 0o600
            await side.deliver(outcome(job))
            assert await put(chunk(job.seq, b"late\n", offset=12)) == 17  # after its end: the ledger knows whose it was

    main()


@pytest.mark.parametrize(
    "changed",
    [
        {"stream": "../../token"},
        {"stream": ""},
        {"attempt": 0},
        {"attempt": 2},
        {"seq": 99},
        {"seq": -1},
        {"offset": -1},
        {"offset": MAX_LOG_BYTES},
        {"data": b""},
        {"data": b"x" * (LOG_CHUNK_BYTES + 1)},
    ],
    ids=str,
)
def test_what_no_honest_agent_sends_is_refused_for_good(tmp_path: Path, changed: dict[str, Any]) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            at_folder(rig, tmp_path / "logs")
            side = rig.agent()
            job = await rig.submit("a")
            rig.controller.sessions.receive(side.handle, [chunk(**{"seq": job.seq, **changed})])
            await until(lambda: side.got(LogAck))
            assert side.got(LogAck)[0].upto == MAX_LOG_BYTES
            assert not (tmp_path / "logs").exists()

    main()


def test_another_agents_attempt_is_not_to_be_written(tmp_path: Path) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            at_folder(rig, tmp_path / "logs")
            owner = rig.agent()
            job = await rig.submit("a")
            other = rig.agent("other-1")
            rig.controller.sessions.receive(other.handle, [chunk(job.seq)])
            await until(lambda: other.got(LogAck))
            assert not (tmp_path / "logs").exists()
            await owner.deliver(outcome(job))
            rig.controller.sessions.receive(other.handle, [chunk(job.seq)])
            await until(lambda: len(other.got(LogAck)) == 2)
            assert not (tmp_path / "logs").exists()

    main()


def test_growth_wakes_those_who_follow_logs_and_nobody_else(tmp_path: Path) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            side = rig.agent()
            job = await rig.submit("a")
            with rig.controller.subscribe(job.seq, logs=True) as follower, rig.controller.subscribe(job.seq) as other:
                rig.controller.sessions.receive(side.handle, [LogGrown(job.seq, 1)])
                assert await follower.next(5.0)
                assert not await other.next(0.01)

    main()


def test_logs_go_with_their_jobs(tmp_path: Path) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            rig.agent()
            jobs = [await rig.submit(name) for name in "abc"]
            kept = [write(tmp_path, job.seq, "text") for job in jobs]
            gone = [write(tmp_path, seq, "text", attempt=attempt) for seq in (10**6, 10**6 + 1) for attempt in (1, 2)]
            foreign = tmp_path / "00" / "notes.txt"
            foreign.parent.mkdir(exist_ok=True)
            foreign.write_text("not ours")
            logs = JobLogs(tmp_path, ledger=rig.ledger, changes=Changes(), spawn=rig.controller._spawn)
            sweeper = LogSweeper(logs, rig.ledger, max_bytes=1 << 30, is_active=lambda seq: False)
            assert await sweeper.sweep() == 2
            assert [path.exists() for path in (*kept, foreign, *gone)] == [True] * 4 + [False] * 4
            assert await sweeper.sweep() == 0
            logs.close()

    main()


def test_the_oldest_go_when_all_together_are_too_large(tmp_path: Path) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            rig.agent(slots=20)
            jobs = [await rig.submit(f"job-{n}") for n in range(10)]
            paths = [write(tmp_path, job.seq, "x" * 40_000) for job in jobs]
            size = next(iter(scan(paths[0].parent).values()))
            logs = JobLogs(tmp_path, ledger=rig.ledger, changes=Changes(), spawn=rig.controller._spawn)
            sweeper = LogSweeper(logs, rig.ledger, max_bytes=6 * size, is_active=lambda seq: seq == jobs[1].seq)
            assert await sweeper.sweep() == 5
            # Nine tenths of six are left: that is five. The second is unfinished and stays.
            assert [path.exists() for path in paths] == [False, True, *[False] * 4, *[True] * 4]
            assert await sweeper.sweep() == 0
            logs.close()

    main()


def test_which_are_the_oldest() -> None:
    sizes = {5: 10, 3: 10, 9: 10}
    assert oldest(sizes, 0, lambda seq: False) == set()
    assert oldest(sizes, 1, lambda seq: False) == {3}
    assert oldest(sizes, 11, lambda seq: False) == {3, 5}
    assert oldest(sizes, 11, lambda seq: seq == 3) == {5, 9}
    assert oldest(sizes, 999, lambda seq: False) == {3, 5, 9}


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    @run
    async def main() -> None:
        async with Rig() as rig:
            at_folder(rig, tmp_path / "logs")
            secret = tmp_path / "token"
            secret.write_text("secret")
            job = await rig.submit("a")  # what belongs to no job is swept away, by the controller's own sweep too
            path = write(tmp_path / "logs", job.seq, "")
            path.unlink()
            path.symlink_to(secret)
            with pytest.raises(OSError, match="symbolic"):
                await rig.controller.logs.read(job.seq, 1, LogStream.STDOUT)

    main()
