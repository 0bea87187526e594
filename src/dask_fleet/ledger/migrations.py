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


def shipped() -> list[Migration]:
    """Return the migrations of this version, in order."""
    found = []
    for entry in (files("dask_fleet.ledger") / "sql" / "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name)
        if match:
            found.append(Migration(int(match[1]), match[2], entry.read_text("utf-8")))
    found.sort()
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("the ledger's migrations are not numbered 1, 2, 3 …")
    return found


def migrate(connection: Any, migrations: Sequence[Migration] | None = None) -> str:
    """Apply what is missing and return the ledger's id. The caller holds the owner's lock.

    Each migration is one transaction with the record of its number (``user_version``): ended at any statement, it is as if
    it had not begun.

    Raises
    ------
    LedgerTooNew
        If the database has migrations that this version does not know.
    """
    known = shipped() if migrations is None else migrations
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(known):
        raise LedgerTooNew(
            f"the ledger has schema {version}, this version of Dask Fleet knows {len(known)}: "
            "install the version that wrote it or restore a backup", schema=version, known=len(known),
        )
    for migration in known[version:]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(migration.sql)
            connection.execute(f"PRAGMA user_version = {migration.number:d}")
            if migration.number == 1:
                connection.execute("INSERT INTO meta (key, value) VALUES ('ledger_id', ?)", (secrets.token_hex(16),))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    (ledger_id,) = connection.execute("SELECT value FROM meta WHERE key = 'ledger_id'").fetchone()
    return str(ledger_id)
