"""How many tokens there may be, and which ended ones are forgotten: decided from the records alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from dask_fleet.model.errors import Conflict
from dask_fleet.model.jobs import TokenRecord

MAX_TENANT_TOKENS = 10_000
"""Of one tenant that have not ended."""
MAX_TOKENS = 50_000
"""Of all tenants together: all are in memory, and read again every second."""
ENDED_KEPT_US = 30 * 86_400 * 1_000_000
"""How long an ended token is still listed (``tokens list --all``)."""
MAX_TENANT_ENDED = 2_000
"""Ended ones of one tenant that are listed at most, the last ended ones: a program may make a token a second."""


def refuse_too_many(tokens: Iterable[TokenRecord], tenant: str, now_us: int) -> None:
    """Check that `tenant` may have one token more. Those that have ended do not count.

    Raises
    ------
    Conflict
        If there are too many; the message says what to do.
    """
    in_all = of_tenant = 0
    for token in tokens:
        if not _has_ended(token, now_us):
            in_all += 1
            of_tenant += token.tenant == tenant
    if of_tenant >= MAX_TENANT_TOKENS:
        raise Conflict(
            f"the tenant {tenant!r} has {of_tenant} valid tokens, the most it may have: `dask-fleet tokens list` shows them,"
            " `dask-fleet tokens revoke ID` makes room at once, and a token made with a short --expires makes room by itself"
        )
    if in_all >= MAX_TOKENS:
        raise Conflict(
            f"this server has {in_all} valid tokens of all tenants, the most it may have: revoke some that nobody needs"
            " (`dask-fleet tokens list`, `dask-fleet tokens revoke ID`), or have administrators of other tenants do so"
        )


def forgettable(tokens: Iterable[TokenRecord], now_us: int, *, spared: frozenset[str]) -> list[TokenRecord]:
    """Return the ended tokens that need not be kept any more, those that ended first first, but for the ids `spared`."""
    ended: defaultdict[str, list[tuple[int, str, TokenRecord]]] = defaultdict(list)
    for token in tokens:
        end_us = token.ended_us
        if end_us is not None and end_us <= now_us and token.token_id not in spared:
            ended[token.tenant].append((end_us, token.token_id, token))
    found: list[tuple[int, str, TokenRecord]] = []
    for of_tenant in ended.values():
        of_tenant.sort()
        surplus = len(of_tenant) - MAX_TENANT_ENDED
        found += [one for n, one in enumerate(of_tenant) if n < surplus or one[0] <= now_us - ENDED_KEPT_US]
    return [token for _, _, token in sorted(found)]


def _has_ended(token: TokenRecord, now_us: int) -> bool:
    return token.ended_us is not None and token.ended_us <= now_us
