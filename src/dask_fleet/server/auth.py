"""Who is asking: bearer tokens, principals and scopes."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

import msgspec
from starlette.requests import HTTPConnection

from dask_fleet.model.errors import Forbidden, Unauthorized
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.plugins.clock import Clock

TOKEN_PREFIX = "fleet_"  # noqa: S105 - the public beginning of every token: secret scanners find leaked ones by it
_SCHEME = b"bearer "
_TOKEN_LENGTH = len(TOKEN_PREFIX) + 43
_NEVER = 1 << 62


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
    never compared.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[Principal, int]] = {}
        self._ends: dict[str, int] = {}

    def load(self, tokens: Iterable[TokenRecord]) -> None:
        """Replace all that is known by `tokens`."""
        known: dict[bytes, tuple[Principal, int]] = {}
        ends: dict[str, int] = {}
        for token in tokens:
            end = min(token.expires_us or _NEVER, _NEVER if token.revoked_us is None else token.revoked_us)
            principal = Principal(
                user=token.user, tenant=token.tenant, scopes=effective_scopes(token.scopes), token_id=token.token_id
            )
            known[token.digest] = (principal, end)
            ends[token.token_id] = end
        self._known, self._ends = known, ends

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
            if found is not None and self._clock.now_us() < found[1]:
                return found[0]
        raise unauthorized()

    def is_valid(self, token_id: str) -> bool:
        """Return whether the token of that id could still be used: sessions made from it end with it."""
        return self._clock.now_us() < self._ends.get(token_id, 0)
