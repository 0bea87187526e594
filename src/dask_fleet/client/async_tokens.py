"""What a client asks about tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from dask_fleet.client.options import encode_params
from dask_fleet.client.transport import Transport


class AsyncTokens:
    """The part of `AsyncClient` that makes, lists and ends tokens; all of it needs the scope ``admin``."""

    _transport: Transport

    async def create_token(
        self, *, user: str, scopes: Iterable[str], tenant: str | None = None, expires: float | str | None = None
    ) -> dict[str, Any]:
        """Make a token, which needs the scope ``admin``; ``["token"]`` of the answer is the token, never to be seen again.

        Parameters
        ----------
        user
            Whose it is: jobs bear this name.
        scopes
            Of ``submit``, ``read``, ``run_code``, ``agent``, ``admin``.
        tenant
            Who shares its jobs and results; the caller's own if not given.
        expires
            Seconds, text such as ``"30d"``, or ``"never"``; the server's default is 90 days.
        """
        asked = {"user": user, "scopes": list(scopes), "tenant": tenant, "expires": expires}
        return await self._transport.json(
            "POST",
            "/v1/tokens",
            headers={"Content-Type": "application/json"},
            content=encode_params({name: value for name, value in asked.items() if value is not None}),
        )

    async def list_tokens(self) -> list[dict[str, Any]]:
        """Return all tokens, ended ones too: whose they are and what they may do, never the tokens themselves."""
        return list((await self._transport.json("GET", "/v1/tokens"))["tokens"])

    async def revoke_token(self, token_id: str) -> dict[str, Any]:
        """End a token for good; what it has open ends within seconds. Twice is harmless."""
        return await self._transport.json("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")
