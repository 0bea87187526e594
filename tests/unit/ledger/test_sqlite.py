import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from dask_fleet.ledger import connections, listing, lock, migrations, statements, threads, writer
from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.errors import (
    ConfigError,
    InternalError,
    LedgerFull,
    LedgerInUse,
    LedgerTooNew,
    LedgerUnavailable,
    NotFound,
)
from dask_fleet.model.jobs import JobFilter
from dask_fleet.model.states import RunState
from dask_fleet.testing.ledger_conformance import end_of, request


def on(path: Path, act: Callable[[SQLiteLedger], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        ledger = SQLiteLedger(path, **options)
        await ledger.open()
        try:
            async with asyncio.timeout(30):
                await act(ledger)
        finally:
            await ledger.close()

    asyncio.run(run())


# ---------------------------------------------------------------- the one owner


def test_a_second_owner_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        with pytest.raises(LedgerInUse, match=str(os.getpid())):
            await SQLiteLedger(tmp_path / "ledger.db").open()
        await ledger.accept(request())

    on(tmp_path / "ledger.db", act)
    on(tmp_path / "ledger.db", act)  # let go after closing


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys, pathlib\n"
        "from dask_fleet.ledger.sqlite import SQLiteLedger\n"
        "async def main():\n"
        "    ledger = SQLiteLedger(pathlib.Path(sys.argv[1])); await ledger.open(); os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "ledger.db")], timeout=60, check=False)
    assert ended.returncode == -9

    async def act(ledger: SQLiteLedger) -> None:
        assert await ledger.get("nobody") is None

    on(tmp_path / "ledger.db", act)


def test_a_failed_opening_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, " * 100)
    with pytest.raises(LedgerUnavailable, match="cannot be opened"):
        on(path, None)  # type: ignore[arg-type]
    path.unlink()

    async def act(ledger: SQLiteLedger) -> None:
        assert ledger.ledger_id

    on(path, act)


def test_network_file_systems_are_told_by_the_longest_mount_point() -> None:
    mounts = "/dev/vda / ext4 rw 0 0\nhome:/x /home nfs4 rw 0 0\ntmpfs /home/a\\040b tmpfs rw 0 0\n"
    assert lock.file_system_of(Path("/home/x/.fleet"), mounts) == "nfs4"
    assert lock.file_system_of(Path("/home/a b/c"), mounts) == "tmpfs"
    assert lock.file_system_of(Path("/homestead"), mounts) == "ext4"
    assert "nfs4" in lock.NETWORK_FILE_SYSTEMS


def test_an_old_sqlite_is_refused_with_the_cure() -> None:
    connections.check_sqlite(3_051_003)
    with pytest.raises(ConfigError, match=r"SQLite 3\.51\.2 .*--upgrade apsw"):
        connections.check_sqlite(3_051_002)


def test_its_files_are_its_owners(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        await ledger.accept(request())
        modes = await asyncio.to_thread(lambda: {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir()})
        assert len(modes) == 4
        assert set(modes.values()) == {0}

    on(tmp_path / "ledger.db", act)


def test_each_commit_is_synced(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        connection = ledger._open.writer._connection
        assert connection.pragma("synchronous") == 2
        assert connection.pragma("journal_mode") == "wal"
        assert ledger._open.reads._execute("PRAGMA query_only").fetchone() == (1,)

    on(tmp_path / "ledger.db", act)


# ---------------------------------------------------------------- the medium


def test_a_full_disk_refuses_writes_and_serves_reads_until_there_is_room(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        job = (await ledger.accept(request("before"), claim_for="agent")).job
        connection = ledger._open.writer._connection
        pages = await ledger._open.writer.submit(lambda: connection.pragma("page_count"))
        await ledger._open.writer.submit(lambda: connection.pragma("max_page_count", pages))
        answers = await asyncio.gather(
            *(ledger.accept(request(f"j{n}", params=b"x" * 9000)) for n in range(20)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {LedgerFull}
        assert ledger.refusing == "the ledger's disk is full"
        assert await ledger.get("j0") is None
        assert await ledger.get("before") == job
        # What a drive with room again looks like: nobody restarts anything.
        writes = ledger._open.writer
        connection.pragma("max_page_count", 1 << 30)
        assert (await ledger.accept(request("j0", params=b"x" * 9000))).opened
        assert ledger.refusing is None
        assert await ledger.finish(end_of(job)) is not None
        assert await writes.submit(lambda: connection.pragma("integrity_check")) == "ok"

    on(tmp_path / "ledger.db", act)


def test_what_the_schema_refuses_is_our_fault_and_takes_nobody_along(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        job = (await ledger.accept(request("a"), claim_for="agent")).job
        bad = ledger._open.writer.submit(
            ledger._open.writes._execute, "UPDATE jobs SET state = 'nonsense' WHERE seq = ?", (job.seq,))
        good = [ledger.accept(request(f"j{n}")) for n in range(5)]
        refused, *others = await asyncio.gather(bad, *good, return_exceptions=True)
        assert isinstance(refused, InternalError)
        assert all(not isinstance(other, BaseException) and other.opened for other in others)
        assert await ledger.get("a") == job

    on(tmp_path / "ledger.db", act)


def test_reads_cannot_write(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        with pytest.raises(LedgerUnavailable, match="cannot be read"):
            await ledger._open.reader.submit(ledger._open.reads._execute, "DELETE FROM jobs")

    on(tmp_path / "ledger.db", act)


def test_the_log_is_copied_into_the_database_in_a_pause_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_CHECKPOINT_PAGES", 1)
    monkeypatch.setattr(writer, "REST_S", 0.01)
    path = tmp_path / "ledger.db"

    async def act(ledger: SQLiteLedger) -> None:
        await ledger.accept(request())
        async with asyncio.timeout(10):
            while ledger._open.writer.has_chores:  # noqa: ASYNC110 - a thread cannot set our events
                await asyncio.sleep(0.01)
        alone = apsw.Connection(f"file:{path}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        assert alone.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        alone.close()

    on(path, act)
    assert not path.with_name("ledger.db-wal").exists() or path.with_name("ledger.db-wal").stat().st_size == 0


# ---------------------------------------------------------------- group commit


def test_batches_hold_at_most_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    execute = writer.GroupCommit._execute

    def watched(self: writer.GroupCommit, batch: list[threads.Operation]) -> None:
        before = self._connection.total_changes()
        execute(self, batch)
        sizes.append(self._connection.total_changes() - before)

    monkeypatch.setattr(writer.GroupCommit, "_execute", watched)

    async def act(ledger: SQLiteLedger) -> None:
        await asyncio.gather(*(ledger.accept(request(f"j{n}", tags=("a", "b")), claim_for="agent") for n in range(600)))
        assert max(sizes) <= writer.LOOP_ROWS
        assert len(sizes) < 100, "nothing was grouped"

    on(tmp_path / "ledger.db", act)


def test_an_operation_that_refuses_after_writing_is_undone_and_takes_nobody_along(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        writes = ledger._open.writes

        def refuse_late() -> None:
            writes.accept(request("late"), None)
            raise NotFound("after a write")

        good = [ledger.accept(request(f"a{n}")) for n in range(3)]
        bad = ledger._open.writer.submit(refuse_late)
        *others, refused = await asyncio.gather(*good, bad, return_exceptions=True)
        assert isinstance(refused, NotFound)
        assert all(not isinstance(other, BaseException) and other.opened for other in others)
        assert await ledger.get("late") is None
        assert await ledger.get("a0") is not None

    on(tmp_path / "ledger.db", act)


def test_what_a_rollback_undid_is_not_remembered(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        writes = ledger._open.writes
        job = (await ledger.accept(request("a"), claim_for="agent")).job

        def cancel_and_fail() -> None:
            assert writes.request_cancel(job.seq, 1, "somebody") is not None
            raise RuntimeError("after a write")

        with pytest.raises(RuntimeError):
            await ledger._open.writer.submit(cancel_and_fail)
        ended = await ledger.finish(end_of(job))
        assert ended is not None
        assert (ended.state, ended.cancel_requested_by) == (RunState.SUCCEEDED, None)
        assert await ledger.get("a") == ended

    on(tmp_path / "ledger.db", act)


def test_a_rolled_back_reservation_of_event_ids_is_made_again(tmp_path: Path) -> None:
    seen: list[int] = []

    def broken() -> None:
        raise ValueError("a fault of ours in the first batch")

    async def first(ledger: SQLiteLedger) -> None:
        with pytest.raises(ValueError, match="a fault of ours"):
            await ledger._open.writer.submit(broken)
        await second(ledger)

    async def second(ledger: SQLiteLedger) -> None:
        job = (await ledger.accept(request(f"j{len(seen)}"))).job
        seen.append((await ledger.events(job.seq))[0].event_id)

    on(tmp_path / "ledger.db", first)
    on(tmp_path / "ledger.db", second)
    assert seen[0] < seen[1]


def test_stop_runs_what_was_queued(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        waiting = [asyncio.ensure_future(ledger.accept(request(f"j{n}"))) for n in range(300)]
        await asyncio.sleep(0)
        await ledger.close()
        assert all(answer.opened for answer in await asyncio.gather(*waiting))
        with pytest.raises(LedgerUnavailable):
            await ledger.get("j0")

    on(tmp_path / "ledger.db", act)


def test_event_ids_ascend_over_blocks_and_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_fleet.ledger.writes.EVENT_IDS_RESERVED", 5_000)
    seen: list[int] = []

    async def act(ledger: SQLiteLedger) -> None:
        for _ in range(3):
            job = (await ledger.accept(request(f"j{len(seen)}"))).job
            seen.append((await ledger.events(job.seq))[0].event_id)

    for _ in range(3):
        on(tmp_path / "ledger.db", act)
    assert seen == sorted(set(seen))


# ---------------------------------------------------------------- listings


def test_a_page_looks_at_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_LOOKED_AT", 20)

    async def act(ledger: SQLiteLedger) -> None:
        for n in range(100):
            user = "a" if n % 50 == 0 else "b"
            await ledger.accept(request(f"j{n}", user=user, service=f"s{n % 2}", endpoint=f"e{n % 3}"))
        # Both drivers are larger than what may be looked at, so pages are short but the walk finds everything.
        where = JobFilter(tenant="default", user="b", service="s0")
        found: list[str] = []
        pages = 0
        before = None
        while True:
            page = await ledger.list_jobs(where, before_seq=before, limit=50)
            pages += 1
            found += [job.job_id for job in page.jobs]
            before = page.next_before_seq
            if before is None:
                break
        assert pages > 2
        assert found == [f"j{n}" for n in reversed(range(100)) if n % 2 == 0 and n % 50 != 0]

    on(tmp_path / "ledger.db", act)


@pytest.mark.parametrize("name", ["by_state", "by_endpoint", "by_user", "by_tag", "unfinished", "next_tenant_in_state",
                                  "next_endpoint", "first_created_from"])
def test_each_driver_seeks_and_never_scans_or_sorts(tmp_path: Path, name: str) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        sql = statements.load("listing")[name]
        bindings = (0,) * sql.count("?")
        plan = [row[3] for row in ledger._open.reads._execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
        assert all(step.startswith("SEARCH") for step in plan), plan

    on(tmp_path / "ledger.db", act)


def test_conditions_are_looked_up_in_indexes_without_reading_rows(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        sql = statements.load("listing")["fitting"]
        names = ("candidates", "state", "user", "service", "tag", "tenant", "endpoints")
        plan = [row[3] for row in ledger._open.reads._execute(f"EXPLAIN QUERY PLAN {sql}", dict.fromkeys(names, "[]"))]
        looked_up = [step for step in plan if step.startswith("SEARCH")]
        assert len(looked_up) == 4
        for step in looked_up:
            assert "COVERING INDEX" in step or "PRIMARY KEY" in step
            assert "rowid=?" in step or "job_seq=?" in step

    on(tmp_path / "ledger.db", act)


def test_the_cluster_that_a_request_got_is_found_along_an_index(tmp_path: Path) -> None:
    async def act(ledger: SQLiteLedger) -> None:
        sql = statements.load("clusters")["cluster_of_request"]
        (plan,) = [row[3] for row in ledger._open.reads._execute(f"EXPLAIN QUERY PLAN {sql}", ("",))]
        assert plan.startswith("SEARCH clusters USING INDEX clusters_by_request")

    on(tmp_path / "ledger.db", act)


# ---------------------------------------------------------------- migrations

SHAPE = {
    "meta", "jobs", "large_params", "past_runs", "attempts", "events", "results", "doomed_locations", "tags", "idempotency",
    "clock_steps", "tokens", "jobs_by_id", "jobs_by_state", "jobs_by_endpoint", "jobs_by_user", "jobs_purgeable",
    "results_by_expiry", "idempotency_by_time", "agent_leases", "results_by_location", "clusters", "clusters_living",
    "clusters_by_tenant", "clusters_ended", "clusters_by_request", "slot_leases", "slot_leases_held", "cluster_events",
}
NEW_IN_2 = {"agent_leases", "results_by_location"}
NEW_IN_3 = {
    "clusters", "clusters_living", "clusters_by_tenant", "clusters_ended", "slot_leases", "slot_leases_held",
    "cluster_events",
}
NEW_IN_4 = {"clusters_by_request"}


def shape(connection: Any) -> set[str]:
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE sql IS NOT NULL")}
    return {name for name in names if not name.startswith("sqlite_")}


def test_migrations_give_the_expected_shape(tmp_path: Path) -> None:
    connection = connections.open_writer(tmp_path / "ledger.db", synchronous="OFF")
    first = migrations.migrate(connection)
    assert shape(connection) == SHAPE
    assert migrations.migrate(connection) == first
    tables = connection.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'")
    assert {name for name, strict in tables if not strict} == {"sqlite_schema"}
    connection.close()


def test_a_migration_ended_at_any_statement_is_as_if_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    stop_at = 0
    seen_between: dict[int, int] = {}
    states = {
        0: set(), 1: SHAPE - NEW_IN_2 - NEW_IN_3 - NEW_IN_4, 2: SHAPE - NEW_IN_3 - NEW_IN_4, 3: SHAPE - NEW_IN_4, 4: SHAPE
    }  # fmt: skip
    while True:
        connection = connections.open_writer(path, synchronous="OFF")
        seen = 0

        def stop(*_: Any) -> bool:
            nonlocal seen
            seen += 1
            return seen != stop_at + 1  # noqa: B023 - False aborts the statement

        connection.exec_trace = stop
        try:
            migrations.migrate(connection)
        except apsw.ExecTraceAbort:
            connection.exec_trace = None
            schema, _ = migrations._standing(connection)
            assert shape(connection) == states[schema]
            assert ("suspect" in columns(connection, "jobs")) == (schema >= 2)
            seen_between[schema] = seen_between.get(schema, 0) + 1
            stop_at += 1
            connection.close()
            if schema:  # what is done stays done: begin anew
                for file in tmp_path.iterdir():
                    file.unlink()
        else:
            break
    assert seen_between[0] > len(SHAPE - NEW_IN_2 - NEW_IN_3 - NEW_IN_4)
    assert seen_between[1] >= 9  # each of its statements
    assert seen_between[2] >= len(NEW_IN_3)
    assert seen_between[3] >= len(NEW_IN_4)
    connection.exec_trace = None
    assert shape(connection) == SHAPE
    connection.close()


def columns(connection: Any, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def test_a_ledger_of_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = connections.open_writer(path, synchronous="OFF")
    migrations.migrate(connection)
    connection.pragma("user_version", 999)
    connection.close()
    with pytest.raises(LedgerTooNew, match="needs a version of Dask Fleet that knows schema 999"):
        on(path, None)  # type: ignore[arg-type]


LAST = len(migrations.shipped())
ADDITIVE = migrations.Migration(LAST + 1, "more", "ALTER TABLE jobs ADD COLUMN more INTEGER NOT NULL DEFAULT 0", 1)
INCOMPATIBLE = migrations.Migration(LAST + 1, "other", "ALTER TABLE jobs RENAME COLUMN agent TO holder")


def migrated(path: Path, *more: migrations.Migration) -> None:
    connection = connections.open_writer(path, synchronous="OFF")
    migrations.migrate(connection, [*migrations.shipped(), *more])
    connection.close()


def test_an_upgrade_that_only_added_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ids: list[str] = []

    async def before(ledger: SQLiteLedger) -> None:
        await ledger.accept(request("old"), claim_for="a")

    async def after(ledger: SQLiteLedger) -> None:
        old = await ledger.get("old")
        assert old is not None
        assert await ledger.finish(end_of(old)) is not None
        assert (await ledger.accept(request(f"new-{len(ids)}"))).opened
        ids.append(ledger.ledger_id)

    async def again(ledger: SQLiteLedger) -> None:
        assert await ledger.get("new-0") is not None
        ids.append(ledger.ledger_id)

    on(path, before)
    migrated(path, ADDITIVE)
    on(path, after)  # this version, on the next one's file
    migrated(path, ADDITIVE)  # the next one again: nothing is applied twice
    on(path, again)
    assert len(set(ids)) == 1


def test_an_upgrade_that_changed_what_was_there_cannot_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    migrated(path, INCOMPATIBLE, migrations.Migration(LAST + 2, "more", "CREATE TABLE more (a INTEGER) STRICT", 1))
    with pytest.raises(LedgerTooNew, match=f"knows schema {LAST + 1}; this one knows {LAST}"):
        on(path, None)  # type: ignore[arg-type]


def test_the_version_before_works_on_with_this_ones_file(tmp_path: Path) -> None:
    """It looks at ``user_version`` alone and names its columns: the ones it does not know get their defaults."""
    path = tmp_path / "ledger.db"

    async def act(ledger: SQLiteLedger) -> None:
        job = (await ledger.accept(request("a"), claim_for="agent")).job
        await ledger.finish(end_of(job))

    on(path, act)
    connection = connections.open_writer(path, synchronous="OFF")
    assert connection.pragma("user_version") == 1
    old = sorted(columns(connection, "jobs") - {"deaths", "memory_kills", "losses", "suspect"})
    names = ", ".join(old)
    values = ", ".join({"seq": "99", "job_id": "'b'"}.get(name, name) for name in old)
    connection.execute(f"INSERT INTO jobs ({names}) SELECT {values} FROM jobs")
    connection.close()

    async def back(ledger: SQLiteLedger) -> None:
        job = await ledger.get("b")
        assert job is not None
        assert (job.deaths, job.suspect) == (0, False)

    on(path, back)


def test_named_sql_has_names_once() -> None:
    for file in ("reads", "writes", "listing", "retention", "leases"):
        assert statements.load(file)
