"""Signing in a browser: one-time links, sessions in memory, and the check against requests of other sites."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from dask_fleet.model.errors import Forbidden
from dask_fleet.plugins.clock import Clock
from dask_fleet.server.auth import Principal, unauthorized

COOKIE_NAME = "fleet_session"
CODE_VALID_S = 600.0
SESSION_IDLE_S = 12 * 3600.0
"""A working day: a session not used for so long has to sign in again."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""The only methods a cookie carries without proof of origin. A list of the safe ones: a method forgotten
is refused."""

_MAX_CODES = 100
_MAX_SESSIONS = 10_000
_COOKIE_PREFIX = COOKIE_NAME.encode() + b"="


class _Held(msgspec.Struct):
    """What a code or a session stands for, until when (seconds of the monotonic clock)."""

    principal: Principal
    until: float


class SignIn:
    """Makes one-time codes, turns each into one session, and knows the sessions.

    Only hashes of codes and session ids are held. A restart of the server ends all sessions. Both tables
    are bounded: the oldest entry makes room.

    Parameters
    ----------
    clock
        Durations are measured on its monotonic side.
    is_valid
        Whether the token of that id may still be used; a session ends with the token it was made from.
    """

    def __init__(self, clock: Clock, *, is_valid: Callable[[str], bool] = lambda _token_id: True) -> None:
        self._clock = clock
        self._is_valid = is_valid
        self._codes: OrderedDict[bytes, _Held] = OrderedDict()
        self._sessions: OrderedDict[bytes, _Held] = OrderedDict()

    def new_code(self, principal: Principal) -> str:
        """Return a code that signs `principal` in once, within `CODE_VALID_S`."""
        code = secrets.token_urlsafe(24)
        _put(self._codes, code, _Held(principal, self._clock.monotonic() + CODE_VALID_S), _MAX_CODES)
        return code

    def redeem(self, code: str) -> str:
        """Use up a code; return the id of the session it opens.

        Raises
        ------
        Unauthorized
            If it is unknown, used or too old: always with the same words.
        """
        held = self._codes.pop(_key(code), None)
        if held is None or self._clock.monotonic() >= held.until or not self._is_valid(held.principal.token_id):
            raise unauthorized()
        session = secrets.token_urlsafe(32)
        principal = msgspec.structs.replace(held.principal, via="cookie")
        _put(self._sessions, session, _Held(principal, self._clock.monotonic() + SESSION_IDLE_S), _MAX_SESSIONS)
        return session

    def session(self, session_id: str) -> Principal | None:
        """Return whose session that is and begin its idle time anew, or ``None`` if it has ended or never was."""
        key = _key(session_id)
        held = self._sessions.get(key)
        if held is None:
            return None
        now = self._clock.monotonic()
        if now >= held.until or not self._is_valid(held.principal.token_id):
            del self._sessions[key]
            return None
        held.until = now + SESSION_IDLE_S
        self._sessions.move_to_end(key)
        return held.principal

    def end(self, session_id: str) -> None:
        """Sign out."""
        self._sessions.pop(_key(session_id), None)

    def authenticate_cookie(self, scope: Any) -> Principal | None:
        """Return who an ASGI request with a session cookie comes from, or ``None`` without a living
        session.

        Raises
        ------
        Forbidden
            If the method may change something and the request does not prove that a page of this server
            sent it.
        """
        session_id = session_cookie(scope["headers"])
        principal = None if session_id is None else self.session(session_id)
        if principal is not None and scope.get("method", "") not in SAFE_METHODS:
            check_same_origin(scope)
        return principal


def session_cookie(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the session id among raw ASGI headers; with several of that name, none is trusted."""
    found = [
        pair[len(_COOKIE_PREFIX) :]
        for name, value in headers
        if name == b"cookie"
        for pair in (part.strip() for part in value.split(b";"))
        if pair.startswith(_COOKIE_PREFIX)
    ]
    return found[0].decode("latin-1") if len(found) == 1 else None


def set_cookie_header(session_id: str, *, secure: bool) -> str:
    """Return the value of ``Set-Cookie``. It has no ``Max-Age``: the browser forgets it when it is closed."""
    return f"{COOKIE_NAME}={session_id}; HttpOnly; SameSite=Strict; Path=/" + ("; Secure" if secure else "")


def check_same_origin(scope: Any) -> None:
    """Check that a browser's request comes from a page of this very origin.

    ``SameSite`` alone does not do: another port of the same host is the same *site*. Browsers set
    ``Sec-Fetch-Site`` and ``Origin`` themselves, out of reach of any script.

    Raises
    ------
    Forbidden
        If it does not, or does not say so.
    """
    sites: list[bytes] = []
    origins: list[bytes] = []
    hosts: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"sec-fetch-site":
            sites.append(value)
        elif name == b"origin":
            origins.append(value)
        elif name == b"host":
            hosts.append(value)
    if sites:
        allowed = sites == [b"same-origin"]
    else:
        scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"]).encode()
        allowed = len(hosts) == 1 and origins == [scheme + b"://" + hosts[0]]
    if not allowed:
        raise Forbidden("a signed-in browser may change things from this server's own pages only; programs use a token")


def _key(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _put(table: OrderedDict[bytes, _Held], secret: str, held: _Held, limit: int) -> None:
    while len(table) >= limit:
        table.popitem(last=False)
    table[_key(secret)] = held
