"""Bringing a database to the schema this version knows: numbered files, each in one transaction with its record."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from dask_fleet.model.errors import LedgerTooNew


class Migration(NamedTuple):
    """One step of the schema."""

    number: int
    name: str
    sql: str
    compatible_from: int | None = None
    """Number of the oldest schema whose version can work on after this step; ``None``: only this one and later ones."""


_COMPATIBLE_FROM = re.compile(r"\A-- compatible_from: (\d+)$", re.MULTILINE)


def shipped() -> list[Migration]:
    """Return the migrations of this version, in order."""
    found = []
    for entry in (files("dask_fleet.ledger") / "sql" / "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name)
        if match:
            sql = entry.read_text("utf-8")
            says = _COMPATIBLE_FROM.match(sql)
            found.append(Migration(int(match[1]), match[2], sql, int(says[1]) if says else None))
    found.sort()
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("the ledger's migrations are not numbered 1, 2, 3 …")
    return found


def migrate(connection: Any, migrations: Sequence[Migration] | None = None) -> str:
    """Apply what is missing and return the ledger's id. The caller holds the owner's lock.

    Each migration is one transaction with the record of its number: ended at any statement, it is as if it had not begun.
    Two numbers are kept: how far the schema is (``schema`` in ``meta``), and ``user_version``, the oldest schema whose
    version can work on with it. A migration that only adds (it says so in its first line) leaves the second as it was, so
    that an upgrade can be taken back by installing the version before.

    Raises
    ------
    LedgerTooNew
        If the database needs a version that knows more migrations than this one.
    """
    known = shipped() if migrations is None else migrations
    schema, compatible_from = _standing(connection)
    if compatible_from > len(known):
        raise LedgerTooNew(
            f"the ledger has schema {schema}, which needs a version of Dask Fleet that knows schema {compatible_from};"
            f" this one knows {len(known)}: install the version that wrote it or restore a backup",
            schema=schema, known=len(known),
        )
    for migration in known[schema:]:
        # After an incompatible step an additive one does not let older versions in again.
        compatible_from = max(compatible_from, migration.compatible_from or migration.number)
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(migration.sql)
            if migration.number == 1:
                connection.execute("INSERT INTO meta (key, value) VALUES ('ledger_id', ?)", (secrets.token_hex(16),))
            connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('schema', ?)", (str(migration.number),))
            connection.execute(f"PRAGMA user_version = {compatible_from:d}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    (ledger_id,) = connection.execute("SELECT value FROM meta WHERE key = 'ledger_id'").fetchone()
    return str(ledger_id)


def _standing(connection: Any) -> tuple[int, int]:
    """Return how many migrations the database has, and the oldest schema whose version can work with it."""
    (compatible_from,) = connection.execute("PRAGMA user_version").fetchone()
    if compatible_from == 0:
        return 0, 0
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    return (compatible_from if row is None else int(row[0])), compatible_from
