"""A ledger of the first schema, as an old version left it: this one goes on with it, and the old one can after that."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dask_fleet.ledger import migrations
from dask_fleet.ledger.rows import failure_from, failure_text
from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import JobFilter
from dask_fleet.model.states import AttemptState, RunEvent, RunState
from dask_fleet.testing.ledger_conformance import end_of, request

OLD = Path(__file__).with_name("schema_1")
OLD_CAUSES = {
    "exception", "timeout", "invalid_parameters", "result_not_serializable", "result_too_large", "result_store_full",
    "worker_died", "agent_lost", "service_unavailable",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((OLD / "ledger.sql").read_text("utf-8"))
    return path


def on(path: Path, act: Callable[[SQLiteLedger], Awaitable[None]]) -> None:
    async def run() -> None:
        ledger = SQLiteLedger(path)
        await ledger.open()
        try:
            async with asyncio.timeout(30):
                await act(ledger)
        finally:
            await ledger.close()

    asyncio.run(run())


def old_statements(file: str) -> dict[str, str]:
    """Return the statements of the old version by name."""
    _, *parts = re.split(r"^-- (\w+): .+$", (OLD / f"{file}.sql").read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


async def work(ledger: SQLiteLedger) -> None:
    """Go on with everything that the old version has left."""
    waits, runs = await ledger.unfinished()
    assert await ledger.finish(end_of(runs)) is not None
    claimed = await ledger.claim(waits.seq, waits.run, agent="local-new")
    assert claimed is not None
    killed = Failure.bounded(Cause.MEMORY_LIMIT, "too much", peak_bytes=7)
    assert await ledger.finish(
        end_of(claimed, RunEvent.REQUEUE, failure=killed, counts_as_loss=True, makes_suspect=True)
    )  # fmt: skip
    assert (await ledger.reopen(2, by="ada")).opened
    assert (await ledger.accept(request("new"), claim_for="local-new")).claimed


def test_an_old_ledger_is_migrated_and_read_rightly(path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        assert ledger.ledger_id == "3b51cce843c9b39c89ea792496ca24c8"
        page = await ledger.list_jobs(JobFilter(tenant="default"))
        assert [(job.seq, job.job_id, job.state, job.run, job.attempt) for job in reversed(page.jobs)] == [
            (1, "done", RunState.SUCCEEDED, 1, 1),
            (2, "failed", RunState.FAILED, 2, 3),
            (3, "waits", RunState.QUEUED, 1, 0),
            (4, "runs", RunState.RUNNING, 1, 1),
            (5, "cancelled", RunState.CANCELLED, 1, 1),
            (6, "large", RunState.SUCCEEDED, 1, 1),
        ]
        tagged = await ledger.list_jobs(JobFilter(tenant="default", tag="nightly"))
        assert [job.job_id for job in tagged.jobs] == ["waits", "done"]
        result = await ledger.get_result(1, 1)
        assert result is not None
        assert result.body == b"42"
        stored = await ledger.get_result(6, 1)
        assert stored is not None
        assert stored.location == "ab/" + "ab" * 31
        attempts = await ledger.attempts(2)
        assert [(each.run, each.state, each.failure and each.failure.cause) for each in attempts] == [
            (1, AttemptState.FAILED, Cause.EXCEPTION),
            (1, AttemptState.FAILED, Cause.WORKER_DIED),
            (2, AttemptState.FAILED, Cause.EXCEPTION),
        ]
        assert [event.kind for event in await ledger.events(5)] == ["accepted", "started", "cancel_requested", "cancelled"]
        waits, runs = await ledger.unfinished()
        assert (waits.params, waits.priority) == (b'{"text":"' + b"x" * 1100 + b'"}', 7)
        assert (runs.agent, runs.deaths, runs.losses, runs.suspect) == ("local-old", 0, 0, False)
        assert [token.scopes for token in await ledger.tokens()] == [frozenset({"admin"})]
        again = await ledger.accept(request("other", idempotency_key="key", request_digest=b"\1" * 32))
        assert (again.job.job_id, again.opened) == ("waits", False)  # what the key stood for
        await work(ledger)

    on(path, act)


def test_the_old_version_reads_and_writes_on_after_this_one(path: Path) -> None:
    async def read_on(ledger: SQLiteLedger) -> None:
        job = await ledger.get("theirs")
        assert job is not None
        assert (job.state, job.run, job.suspect, job.losses) == (RunState.CANCELLED, 1, False, 0)
        waits = await ledger.get("waits")
        assert waits is not None
        assert waits.suspect
        assert waits.failure == Failure.bounded(Cause.MEMORY_LIMIT, "too much", peak_bytes=7)

    on(path, work)
    reads, writes = old_statements("reads"), old_statements("writes")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,), "the old version would refuse it"
        assert database.execute(reads["meta"], ("schema",)).fetchone() == (str(len(migrations.shipped())),)
        for statement in [*reads.values(), *writes.values(), *old_statements("retention").values()]:
            database.execute(f"EXPLAIN {statement}", [None] * statement.count("?"))
        jobs = {name: one(database, reads["job_by_id"], name) for name in ("done", "failed", "waits", "runs", "new")}
        assert {name: (row[11], row[12], row[13]) for name, row in jobs.items()} == {
            "done": (1, "succeeded", 1),
            "failed": (3, "queued", 3),
            "waits": (1, "queued", 1),
            "runs": (1, "succeeded", 1),
            "new": (1, "running", 1),
        }
        assert json.loads(jobs["waits"][27])["cause"] == "worker_died"  # the old version's word for it
        assert one(database, reads["result"], (4 << 20) + 1)[3] == b"42"
        events = database.execute(reads["events"], (3, 0, 100)).fetchall()
        assert [event[3] for event in events] == ["accepted", "started", "retrying"]

        row = list(jobs["waits"])
        del row[6]  # the parameters come last when a job is written
        row[0], row[1] = 100, "theirs"
        database.execute(writes["insert_job"], [*row, b"{}"])
        row[11], row[18] = "cancelled", row[16]  # state and end
        assert database.execute(writes["update_job"], [*row[10:], 100, 1, 1, "queued"]).rowcount == 1
        database.execute(writes["file_run"], (100,))
        database.commit()
    on(path, read_on)


def one(database: sqlite3.Connection, statement: str, *parameters: Any) -> tuple[Any, ...]:
    (row,) = database.execute(statement, parameters)
    found: tuple[Any, ...] = row
    return found


@pytest.mark.parametrize("cause", Cause)
def test_a_cause_is_written_so_that_the_old_version_can_read_it(cause: Cause) -> None:
    """It decodes an enumeration strictly: a word that it does not know costs it the row, and with that its start."""
    failure = Failure.bounded(cause, "why", type="T", signal="SIGSEGV", peak_bytes=3)
    text = failure_text(failure)
    assert text is not None
    assert json.loads(text)["cause"] in OLD_CAUSES
    assert failure_from(text) == failure


def test_a_cause_of_a_newer_version_is_read_by_its_older_word() -> None:
    assert failure_from('{"cause":"worker_died","message":"m","exact":"since then"}') == Failure(
        cause=Cause.WORKER_DIED, message="m"
    )
    assert failure_from('{"cause":"memory_limit","message":"m"}') == Failure(cause=Cause.MEMORY_LIMIT, message="m")
