"""Who is asking: bearer tokens, principals and scopes."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import HTTPConnection

from dask_fleet.model.errors import BadRequest, Forbidden, Unauthorized
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.plugins.clock import Clock

log = logging.getLogger(__name__)

TOKEN_PREFIX = "fleet_"  # noqa: S105 - the public beginning of every token: secret scanners find leaked ones by it
_SCHEME = b"bearer "
_TOKEN_LENGTH = len(TOKEN_PREFIX) + 43
_NEVER = 1 << 62
_LOOKS_LIKE_TOKEN = re.compile(rb"fleet_[A-Za-z0-9_-]{43}")
_TOKEN_PARAMETER = re.compile(rb"(?:^|&)(?:access_|auth_|api_|bearer_)?(?:token|key|authorization)=", re.IGNORECASE)

REFUSALS_LOGGED_EVERY_S = 10.0
"""One line for all refusals of so long: whoever tries tokens must not fill the disk with our log."""


class Scope(StrEnum):
    """What a token may do."""

    SUBMIT = "submit"
    """Call endpoints, cancel and retry."""
    READ = "read"
    """See jobs, results, services and status of its tenant."""
    RUN_CODE = "run_code"
    """Have code of one's own run."""
    AGENT = "agent"
    """Connect as an agent, and nothing else."""
    ADMIN = "admin"
    """Everything of the operator; implies `SUBMIT` and `READ`."""


_IMPLIED = {Scope.ADMIN: frozenset({str(Scope.SUBMIT), str(Scope.READ)})}


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a request comes from; made by authentication only."""

    user: str
    tenant: str
    scopes: frozenset[str]
    """With the implied ones."""
    token_id: str
    via: Literal["token", "cookie"] = "token"


def effective_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Return `scopes` with those that they imply."""
    given = frozenset(str(scope) for scope in scopes)
    return given.union(*(implied for scope, implied in _IMPLIED.items() if scope in given))


def require(principal: Principal, scope: str) -> None:
    """Check that `principal` has `scope`.

    Raises
    ------
    Forbidden
        If not; the message names the scope.
    """
    if scope not in principal.scopes:
        raise Forbidden(f"this needs a token with the scope {str(scope)!r}", scope=str(scope))


def principal_of(request: HTTPConnection) -> Principal:
    """Return who sent `request`, as authentication has noted it in ``scope["state"]["principal"]``.

    Raises
    ------
    Unauthorized
        If nothing is noted: a route that is reached around authentication must stay closed.
    """
    principal = request.scope.get("state", {}).get("principal")
    if not isinstance(principal, Principal):
        raise unauthorized()
    return principal


def unauthorized() -> Unauthorized:
    """Return the one refusal: it does not say whether the token is missing, unknown, expired or revoked."""
    return Unauthorized("send the header 'Authorization: Bearer TOKEN'; the server's data folder holds the token")


def new_token() -> str:
    """Return a fresh token: ``fleet_`` and 256 random bits in 43 URL-safe characters."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode("ascii")


def digest(token: str) -> bytes:
    """Return what the ledger keeps of a token. With 256 random bits in it, no salt and no slow hash are needed."""
    return hashlib.sha256(token.encode()).digest()


class TokenAuthenticator:
    """Knows the tokens by their digests.

    The token is hashed and the hash looked up in a dict. What the look-up's timing could tell is a part of
    the *hash* of what the caller sent, which nobody can steer towards a known one; the token itself is
    never compared. Guessing needs no guard either, with 256 random bits to guess; refusals are counted and
    logged all the same, for they tell of a client that was forgotten when its token ended.

    Times are compared with the latest time this process has seen: a wall clock that is set back revives no token.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest_us = 0
        self._loaded: list[TokenRecord] = []
        self._known: dict[bytes, tuple[Principal, int]] = {}
        self._ends: dict[str, int] = {}
        self._logged_at: float | None = None
        self._unlogged = 0
        self.refused = {"missing": 0, "unknown": 0, "expired": 0, "revoked": 0}
        """Requests without a token, or with one that is none or no more, ever."""

    def load(self, tokens: Iterable[TokenRecord]) -> None:
        """Replace all that is known by `tokens`."""
        loaded = list(tokens)
        if loaded == self._loaded:
            return
        known: dict[bytes, tuple[Principal, int]] = {}
        ends: dict[str, int] = {}
        for token in loaded:
            end = _NEVER if token.ended_us is None else token.ended_us
            principal = Principal(
                user=token.user, tenant=token.tenant, scopes=effective_scopes(token.scopes), token_id=token.token_id
            )
            known[token.digest] = (principal, end)
            ends[token.token_id] = end
            # Whatever was written down has been: a clock that was set back while the server was down is seen by it.
            self._latest_us = max(self._latest_us, token.created_us, token.revoked_us or 0)
        self._loaded, self._known, self._ends = loaded, known, ends

    def authenticate_bearer(self, header_value: bytes) -> Principal:
        """Return whose token an ``Authorization`` header carries.

        Raises
        ------
        Unauthorized
            If it is anything but one valid token; always with the same words.
        """
        # The exact length is checked first so that a header of many kilobytes costs no hash.
        if len(header_value) == _TOKEN_LENGTH + 7 and header_value[:7].lower() == _SCHEME:
            found = self._known.get(hashlib.sha256(header_value[7:]).digest())
            if found is not None:
                if self.now_us() < found[1]:
                    return found[0]
                self._refuse(self._why_ended(found[0].token_id))
                raise unauthorized()
        self._refuse("unknown")
        raise unauthorized()

    def is_valid(self, token_id: str) -> bool:
        """Return whether the token of that id could still be used: sessions made from it end with it."""
        return self.now_us() < self._ends.get(token_id, 0)

    def now_us(self) -> int:
        """Return the latest UTC time seen, in microseconds: it never goes back."""
        now_us = self._clock.now_us()
        if now_us > self._latest_us:
            self._latest_us = now_us
        return self._latest_us

    def _why_ended(self, token_id: str) -> str:
        revoked = any(record.token_id == token_id and record.revoked_us is not None for record in self._loaded)
        return "revoked" if revoked else "expired"

    def _refuse(self, why: str) -> None:
        self.refused[why] += 1
        self._unlogged += 1
        now = self._clock.monotonic()
        if self._logged_at is None or now - self._logged_at >= REFUSALS_LOGGED_EVERY_S:
            log.warning(
                "tokens refused: unknown, expired or revoked",
                extra={"action": "token_refused", "requests": self._unlogged, "since_start": sum(self.refused.values())},
            )
            self._logged_at, self._unlogged = now, 0


def has_token(text: bytes) -> bool:
    """Return whether `text` holds what looks like one of our tokens: it stands where others will read it."""
    return b"fleet_" in text and _LOOKS_LIKE_TOKEN.search(text) is not None


def refuse_token(text: str, where: str) -> None:
    """Refuse what looks like one of our tokens where it would be kept and shown.

    Raises
    ------
    BadRequest
        Naming the place, and the cure for a token that has been seen.
    """
    if "fleet_" in text and has_token(text.encode("utf-8", "replace")):
        raise BadRequest(f"{where} holds a token: if it is a real one, revoke it, for others may have read it on its way")


def refuse_token_in_url(query: bytes) -> None:
    """Refuse a request that shows a token in its address, where proxies, histories and logs keep it.

    Raises
    ------
    Unauthorized
        In the words of any other refusal: whether the token is right is not told.
    """
    if _TOKEN_PARAMETER.search(query) is not None or has_token(unquote_to_bytes(query)):
        raise unauthorized()
