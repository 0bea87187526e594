"""``/v1/tokens``: make, list and revoke tokens. A token itself is in one answer only, that to its making."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dask_fleet.codecs.strict_json import loads
from dask_fleet.model.durations import parse_duration_s
from dask_fleet.model.errors import BadRequest, Forbidden
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.server.auth import Principal, Scope, principal_of, refuse_token, require
from dask_fleet.server.body import read_body
from dask_fleet.server.documents import rfc3339
from dask_fleet.server.methods import Methods
from dask_fleet.server.query import query_of
from dask_fleet.server.routes_jobs import json_response
from dask_fleet.server.tokens import DEFAULT_TENANT, TokenBook

DEFAULT_VALID_S = 90 * 86_400.0
MAX_VALID_S = 3_660 * 86_400.0
"""Ten years; what shall live longer has no end."""
MAX_BODY_BYTES = 10_000

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$"
"""Of users and tenants: what needs no escaping in a header, a log line, or a shell."""
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_MEMBERS = ("user", "tenant", "scopes", "expires")


def routes(tokens: TokenBook) -> list[BaseRoute]:
    """Return the routes of tokens."""
    pages = _Tokens(tokens)
    return [
        Route("/v1/tokens", Methods(GET=pages.list, POST=pages.create)),
        Route("/v1/tokens/{token_id}", Methods(DELETE=pages.revoke)),
    ]


def token_document(record: TokenRecord) -> dict[str, Any]:
    """Return what the API says of a token: never the token, nor its hash."""
    return {
        "token_id": record.token_id,
        "user": record.user,
        "tenant": record.tenant,
        "scopes": sorted(record.scopes),
        "created_at": rfc3339(record.created_us),
        "expires_at": rfc3339(record.expires_us),
        "revoked_at": rfc3339(record.revoked_us),
    }


class _Tokens:
    def __init__(self, tokens: TokenBook) -> None:
        self._tokens = tokens

    async def list(self, request: Request) -> Response:
        principal = _admin(request)
        query_of(request, ())
        found = await self._tokens.list(_reach(principal))
        return json_response({"tokens": [token_document(record) for record in found]})

    async def create(self, request: Request) -> Response:
        principal = _admin(request)
        if principal.via != "token":
            raise Forbidden("a new token needs a token: a browser's session must not outlive itself")
        query_of(request, ())
        document = _document(await read_body(request.scope, request.receive, limit=MAX_BODY_BYTES))
        user, tenant = _name(document, "user", None), _name(document, "tenant", principal.tenant)
        scopes = _scopes(document)
        if _reach(principal) not in {None, tenant}:
            raise Forbidden(f"an administrator of the tenant {principal.tenant!r} makes tokens of this tenant only")
        if Scope.AGENT in scopes and _reach(principal) is not None:
            raise Forbidden(
                "agents run the jobs of all tenants: only an administrator of the tenant 'default' makes their tokens"
            )
        token, record = await self._tokens.create(
            user=user, tenant=tenant, scopes=scopes, valid_s=_valid_s(document), by=principal
        )
        return json_response({**token_document(record), "token": token}, status_code=201)

    async def revoke(self, request: Request) -> Response:
        principal = _admin(request)
        query_of(request, ())
        record = await self._tokens.revoke(request.path_params["token_id"], tenant=_reach(principal), by=principal)
        return json_response(token_document(record))


def _admin(request: Request) -> Principal:
    principal = principal_of(request)
    require(principal, Scope.ADMIN)
    return principal


def _reach(principal: Principal) -> str | None:
    """Return whose tokens an administrator manages: of one tenant, or (the operator's) of all."""
    return None if principal.tenant == DEFAULT_TENANT else principal.tenant


def _document(body: bytes) -> dict[str, Any]:
    document = loads(body)
    if not isinstance(document, dict):
        raise BadRequest(f"the body must be a JSON object with {', '.join(_MEMBERS)}")
    unknown = sorted(set(document) - set(_MEMBERS))
    if unknown:
        named = ", ".join(name[:40] for name in unknown[:10])
        raise BadRequest(f"unknown members: {named}; a token has {', '.join(_MEMBERS)}")
    return document


def _name(document: dict[str, Any], member: str, default: str | None) -> str:
    value = document.get(member, default)
    if not isinstance(value, str) or not _NAME.match(value):
        raise BadRequest(f"{member!r} must be 1 to 100 letters, digits and . _ @ + -, beginning with a letter or digit")
    refuse_token(value, f"{member!r}")
    return value


def _scopes(document: dict[str, Any]) -> frozenset[Scope]:
    value = document.get("scopes")
    known = ", ".join(Scope)
    if not isinstance(value, list) or not value:
        raise BadRequest(f"'scopes' must be a list of at least one of {known}")
    try:
        return frozenset(Scope(one) for one in value)
    except ValueError:
        raise BadRequest(f"'scopes' must be a list of {known}") from None


def _valid_s(document: dict[str, Any]) -> float | None:
    value = document.get("expires", DEFAULT_VALID_S)
    if value == "never":
        return None
    try:
        seconds = parse_duration_s(value)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= MAX_VALID_S:
        raise BadRequest(
            "'expires' must be a duration such as '12h' or '90d', from 1 s to 3660 d, or 'never'; left out it is '90d'"
        )
    return seconds
