"""Many requests in one transaction of the SQLite ledger: all or none, and the loop goes on meanwhile."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw
import pytest

from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.jobs import Accepted, NewRun
from dask_fleet.testing.ledger_conformance import request


def on(path: Path, act: Callable[[SQLiteLedger], Awaitable[None]]) -> None:
    async def run() -> None:
        ledger = SQLiteLedger(path)
        await ledger.open()
        try:
            async with asyncio.timeout(60):
                await act(ledger)
        finally:
            await ledger.close()

    asyncio.run(run())


def news(count: int, *, params: bytes = b"{}") -> list[NewRun]:
    return [request(f"j{n}", params=params) for n in range(count)]


def opened(answers: list[object]) -> int:
    return sum(isinstance(answer, Accepted) and answer.opened for answer in answers)


def test_others_have_their_turns_while_many_are_accepted(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counter = asyncio.create_task(count(), name="counter")
        assert opened(await ledger.accept_many(news(500))) == 500
        assert turns >= 10
        counter.cancel()
        await asyncio.gather(counter, return_exceptions=True)

    on(tmp_path / "ledger.db", act)


@pytest.mark.parametrize("kept", [0, 1, 77, 499])
def test_killed_in_the_middle_none_was_accepted(tmp_path: Path, kept: int) -> None:
    program = (
        "import asyncio, os, sys, pathlib\n"
        "from dask_fleet.ledger.sqlite import SQLiteLedger\n"
        "from dask_fleet.testing.ledger_conformance import request\n"
        "async def main():\n"
        "    ledger = SQLiteLedger(pathlib.Path(sys.argv[1])); await ledger.open()\n"
        "    await ledger.accept(request('before'))\n"
        "    writes, left = ledger._open.writes, int(sys.argv[2])\n"
        "    accept = writes.accept\n"
        "    def accept_or_die(new, claim_for):\n"
        "        nonlocal left\n"
        "        if left == 0: os.kill(os.getpid(), 9)\n"
        "        left -= 1\n"
        "        return accept(new, claim_for)\n"
        "    writes.accept = accept_or_die\n"
        "    await ledger.accept_many([request(f'j{n}') for n in range(500)])\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "ledger.db"
    ended = subprocess.run([sys.executable, "-c", program, str(path), str(kept)], timeout=60, check=False)
    assert ended.returncode == -9

    async def act(ledger: SQLiteLedger) -> None:
        assert await ledger.counts() == {"queued": 1, "running": 0}
        assert opened(await ledger.accept_many(news(500))) == 500
        assert await ledger.counts() == {"queued": 501, "running": 0}

    on(path, act)


def test_a_full_disk_accepts_none_of_them_until_there_is_room(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        writer = ledger._open.writer
        connection = writer._connection
        await ledger.accept(request("before"))
        pages = await writer.submit(lambda: connection.pragma("page_count"))
        await writer.submit(lambda: connection.pragma("max_page_count", pages + 40))
        with pytest.raises(LedgerUnavailable, match="full"):
            await ledger.accept_many(news(400, params=b"x" * 900))
        assert await ledger.counts() == {"queued": 1, "running": 0}
        assert (await ledger.accept(request("small"))).opened  # the others go on
        await writer.submit(lambda: connection.pragma("max_page_count", 1 << 30))
        assert opened(await ledger.accept_many(news(400, params=b"x" * 900))) == 400
        assert await writer.submit(lambda: connection.pragma("integrity_check")) == "ok"

    on(tmp_path / "ledger.db", act)


def test_a_lock_of_another_program_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def act(ledger: SQLiteLedger) -> None:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        many = asyncio.ensure_future(ledger.accept_many(news(100)))
        begin = time.monotonic()
        while not ledger._open.writer._busy:
            await asyncio.sleep(0)
            assert time.monotonic() - begin < 10
        other.execute("COMMIT")
        other.close()
        assert opened(await many) == 100

    on(path, act)


def test_what_breaks_in_the_middle_takes_all_of_them_back_and_nobody_else(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        bad = [*news(120), request("bad", priority="not a number")]
        many = asyncio.ensure_future(ledger.accept_many(bad))
        others = [ledger.accept(request(f"other{n}")) for n in range(5)]
        assert opened(await asyncio.gather(*others)) == 5
        with pytest.raises(Exception, match="rules"):
            await many
        assert await ledger.counts() == {"queued": 5, "running": 0}
        assert opened(await ledger.accept_many(news(120))) == 120

    on(tmp_path / "ledger.db", act)
