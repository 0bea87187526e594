"""Tokens: those that a data folder begins with, and those that operators make. The ledger keeps only their hashes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from pathlib import Path

from dask_fleet.model.errors import Conflict, NotFound
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.server.auth import Principal, Scope, TokenAuthenticator, digest, new_token
from dask_fleet.server.live import LiveRequests
from dask_fleet.server.token_retention import forgettable, refuse_too_many

log = logging.getLogger(__name__)

LOCAL_AGENT = "local-agent"
OPERATOR = "admin"
"""Id of the token made for people."""
OPERATOR_SCOPES = frozenset({Scope.ADMIN, Scope.SUBMIT, Scope.READ, Scope.RUN_CODE})
"""With ``run_code``: who can read that file can start programs on this host as the server's user anyway."""
TOKEN_FILE = "token"  # noqa: S105 - a file name
AGENT_TOKEN_FILE = "agent.token"  # noqa: S105
DEFAULT_TENANT = "default"
"""The operator's: its administrators manage the tokens of all tenants, others those of their own."""

REFRESH_S = 1.0
"""How often the ledger is asked for its tokens, and what their ends leave open is closed."""
READ_TIMEOUT_S = 10.0
FORGET_EVERY_S = 60.0
"""How often ended tokens are looked for that need not be kept any more."""
_FORGOTTEN_AT_ONCE = 500

_TOKEN = re.compile(r"fleet_[A-Za-z0-9_-]{43}\Z")


class TokenBook:
    """Makes, lists and revokes tokens, and sees to it that whatever an ended token has opened ends too.

    The ledger is the truth: it is read again every `REFRESH_S`, so that a change that another process has made (a restored
    ledger, a repair by hand) counts here as well.
    """

    def __init__(self, ledger: Ledger, authenticator: TokenAuthenticator, live: LiveRequests) -> None:
        self._ledger = ledger
        self._authenticator = authenticator
        self._live = live

    async def create(
        self, *, user: str, tenant: str, scopes: frozenset[Scope], valid_s: float | None, by: Principal
    ) -> tuple[str, TokenRecord]:
        """Make a token, valid at once; returned with it, for the only time, is the token itself.

        Parameters
        ----------
        valid_s
            Seconds until it ends by itself; ``None`` is never.
        by
            Who asks: for the log.

        Raises
        ------
        Conflict
            If there are too many that have not ended, see `token_retention`.
        """
        token, now_us = new_token(), self._authenticator.now_us()
        refuse_too_many(await self._ledger.tokens(), tenant, now_us)
        record = TokenRecord(
            token_id=secrets.token_hex(6),
            digest=digest(token),
            user=user,
            tenant=tenant,
            scopes=frozenset(str(scope) for scope in scopes),
            created_us=now_us,
            expires_us=None if valid_s is None else now_us + int(valid_s * 1_000_000),
        )
        await self._ledger.put_token(record)
        log.info(
            "token made",
            extra={"action": "token_created", "token_id": record.token_id, "user": user, "tenant": tenant,
                   "scopes": ",".join(sorted(record.scopes)), "by": by.user},
        )
        await self.refresh()
        return token, record

    async def list(self, tenant: str | None) -> list[TokenRecord]:
        """Return the tokens of a tenant, or all, oldest first; ended ones too."""
        found = [record for record in await self._ledger.tokens() if tenant is None or record.tenant == tenant]
        return sorted(found, key=lambda record: (record.created_us, record.token_id))

    async def revoke(self, token_id: str, *, tenant: str | None, by: Principal) -> TokenRecord:
        """End a token for good, and what it has opened. Repeating it changes nothing.

        Raises
        ------
        NotFound
            If there is none of that id (in `tenant`).
        Conflict
            If it is the local agent's: the server would start one agent after the other, all refused.
        """
        if not any(record.token_id == token_id for record in await self.list(tenant)):
            raise NotFound("no such token; `dask-fleet tokens list` shows them")
        if token_id == LOCAL_AGENT:
            raise Conflict(
                f"this is the token of the server's own agent: to change it, stop the server, delete {AGENT_TOKEN_FILE} in"
                " its data folder, and start it"
            )
        record = await self._ledger.revoke_token(token_id, at_us=self._authenticator.now_us())
        if record is None:
            raise NotFound("no such token; `dask-fleet tokens list` shows them")
        log.info(
            "token revoked",
            extra={"action": "token_revoked", "token_id": token_id, "user": record.user, "by": by.user},
        )
        await self.refresh()
        return record

    async def refresh(self) -> None:
        """Take the ledger's word for what is valid, now."""
        self._authenticator.load(await self._ledger.tokens())
        self.end_what_is_open()

    def end_what_is_open(self) -> None:
        """End requests, streams and connections whose token has ended."""
        ended = self._live.end_invalid(self._authenticator.is_valid)
        if ended:
            log.info("ended with their tokens", extra={"action": "token_ended", "requests": ended})

    async def forget_ended(self) -> int:
        """Delete the tokens that ended long ago, or that are too many; return how many. The log keeps what they were.

        The two that a data folder begins with stay: that one of them was revoked must be known when its file is read again.
        """
        now_us = self._authenticator.now_us()
        found = forgettable(await self._ledger.tokens(), now_us, spared=frozenset({LOCAL_AGENT, OPERATOR}))
        gone = 0
        for begin in range(0, len(found), _FORGOTTEN_AT_ONCE):
            piece = found[begin : begin + _FORGOTTEN_AT_ONCE]
            gone += await self._ledger.forget_tokens([record.token_id for record in piece], ended_by_us=now_us)
            for record in piece:
                log.info(
                    "ended token forgotten",
                    extra={"action": "token_forgotten", "token_id": record.token_id, "user": record.user,
                           "tenant": record.tenant, "scopes": ",".join(sorted(record.scopes)),
                           "created_us": record.created_us, "ended_us": record.ended_us,
                           "revoked": record.revoked_us is not None},
                )  # fmt: skip
        return gone

    async def keep(self) -> None:
        """Refresh for ever, and forget. While the ledger cannot be read, tokens go on ending by their time."""
        forget_at = asyncio.get_running_loop().time() + FORGET_EVERY_S
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    await self.refresh()
                    if asyncio.get_running_loop().time() >= forget_at:
                        forget_at = asyncio.get_running_loop().time() + FORGET_EVERY_S
                        await self.forget_ended()
            except Exception as exc:  # noqa: BLE001 - whatever it is, this task must not end
                log.warning("tokens not read again: %s", exc, extra={"action": "tokens_not_read"})
                self.end_what_is_open()


async def ensure_tokens(ledger: Ledger, data_dir: Path, *, clock: Clock) -> list[TokenRecord]:
    """Make sure that the folder's two token files exist and that the ledger knows their hashes; return all tokens.

    A file that is there is taken as it is, so that tokens survive restarts and an operator may put their own; a missing or
    malformed one is made anew, which revokes its predecessor; so is one that was revoked, lest nobody could come in.
    """
    await _ensure(ledger, data_dir / TOKEN_FILE, OPERATOR, OPERATOR_SCOPES, clock)
    await _ensure(ledger, data_dir / AGENT_TOKEN_FILE, LOCAL_AGENT, frozenset({Scope.AGENT}), clock)
    return await ledger.tokens()


async def _ensure(ledger: Ledger, path: Path, token_id: str, scopes: frozenset[Scope], clock: Clock) -> None:
    known = {record.token_id: record for record in await ledger.tokens()}.get(token_id)
    token = _read(path)
    if token is not None and known is not None and known.revoked_us is not None and known.digest == digest(token):
        log.warning("%s was revoked: a new token is put there", path, extra={"action": "token_renewed"})
        token = None
    if token is None:
        token = new_token()
        _write(path, token)
    # Of an older version's folder the scopes are widened: what has come since is the operator's too.
    if known is None or known.digest != digest(token) or not scopes <= known.scopes:
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
