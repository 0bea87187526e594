"""Opening SQLite the way the ledger needs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import apsw

from dask_fleet.model.errors import ConfigError

Synchronous = Literal["FULL", "NORMAL", "OFF"]

OLDEST_SQLITE = 3_051_003
"""Older ones can corrupt a database in WAL mode when a write and a checkpoint meet (fixed in 3.51.3)."""

_WRITER_CACHE_KIB = 16_384
_READER_CACHE_KIB = 4_096
_BUSY_TIMEOUT_MS = 5_000


def _version_number(text: str) -> int:
    major, minor, patch = (int(part) for part in text.split(".")[:3])
    return major * 1_000_000 + minor * 1_000 + patch


def check_sqlite(version: int | None = None) -> None:
    """Refuse an SQLite that is too old; `version` is in its own numbering (3.51.3 is 3051003).

    Raises
    ------
    ConfigError
        If it is; the message names the cure.
    """
    number = _version_number(apsw.sqlite_lib_version()) if version is None else version
    if number < OLDEST_SQLITE:
        text = f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
        raise ConfigError(f"SQLite {text} can damage the ledger; 3.51.3 or newer is needed: pip install --upgrade apsw")


def open_writer(path: Path, *, synchronous: Synchronous) -> Any:
    """Return the one connection that writes, in WAL mode; the file is readable by its owner only."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=100)
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    if connection.pragma("journal_mode", "wal") != "wal":
        connection.close()
        raise ConfigError(f"{path.parent} cannot hold a write-ahead log: give --data-dir on a local disk")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    return connection


def open_reader(path: Path) -> Any:
    """Return a connection that cannot write and never checkpoints."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, statementcachesize=100)
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA query_only = 1")
    connection.wal_autocheckpoint(0)
    connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    return connection
