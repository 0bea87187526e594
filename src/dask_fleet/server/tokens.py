"""The tokens a data folder begins with: one for people, one for the local agent. The ledger keeps only their hashes."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from dask_fleet.model.jobs import TokenRecord
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.server.auth import Scope, digest, new_token

log = logging.getLogger(__name__)

OPERATOR = "admin"
"""Id of the token made for people."""
TOKEN_FILE = "token"  # noqa: S105 - a file name
AGENT_TOKEN_FILE = "agent.token"  # noqa: S105
DEFAULT_TENANT = "default"

_TOKEN = re.compile(r"fleet_[A-Za-z0-9_-]{43}\Z")


async def ensure_tokens(ledger: Ledger, data_dir: Path, *, clock: Clock) -> list[TokenRecord]:
    """Make sure that the folder's two token files exist and that the ledger knows their hashes; return all tokens.

    A file that is there is taken as it is, so that tokens survive restarts and an operator may put their own; a missing or
    malformed one is made anew, which revokes its predecessor.
    """
    await _ensure(ledger, data_dir / TOKEN_FILE, OPERATOR, frozenset({Scope.ADMIN, Scope.SUBMIT, Scope.READ}), clock)
    await _ensure(ledger, data_dir / AGENT_TOKEN_FILE, "local-agent", frozenset({Scope.AGENT}), clock)
    return await ledger.tokens()


async def _ensure(ledger: Ledger, path: Path, token_id: str, scopes: frozenset[Scope], clock: Clock) -> None:
    token = _read(path)
    if token is None:
        token = new_token()
        _write(path, token)
    known = {record.token_id: record for record in await ledger.tokens()}.get(token_id)
    if known is None or known.digest != digest(token):
        record = TokenRecord(
            token_id=token_id,
            digest=digest(token),
            user="admin" if Scope.ADMIN in scopes else token_id,
            tenant=DEFAULT_TENANT,
            scopes=frozenset(str(scope) for scope in scopes),
            created_us=clock.now_us(),
        )
        await ledger.put_token(record)


def _read(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode & 0o777
        token = path.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if mode & 0o077:
        log.warning("%s could be read by others (mode %o): now 600", path, mode, extra={"action": "token_mode_mended"})
        path.chmod(0o600)
    return token if _TOKEN.match(token) else None


def _write(path: Path, token: str) -> None:
    """Put the token in its file, readable by its owner only from the first byte on."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    temporary.replace(path)
