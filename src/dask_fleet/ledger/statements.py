"""Named SQL: each statement is a block ``-- name: what for`` of a file under ``ledger/sql``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- (\w+): .+$", re.MULTILINE)


@cache
def load(file: str) -> Mapping[str, str]:
    """Return the statements of ``sql/<file>.sql`` by name.

    White space is squeezed: SQLite's wrapper finds prepared statements by comparing their text.
    """
    text = (files("dask_fleet.ledger") / "sql" / f"{file}.sql").read_text("utf-8")
    parts = _NAME.split(text)
    if parts[0].strip():
        raise ValueError(f"{file}.sql: SQL before the first name")
    names, bodies = parts[1::2], parts[2::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}.sql: a name is used twice")
    return {name: " ".join(body.split()) for name, body in zip(names, bodies, strict=True)}
