"""Users of a fleet that is still to be started."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.plugins.clock import SystemClock
from dask_fleet.server.auth import digest, new_token


def add_users(
    data_dir: Path, names: Iterable[str], *, scopes: Iterable[str] = ("submit", "read")
) -> dict[str, str]:
    """Put a token for each user into a ledger that no server has open; return the tokens."""

    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def add() -> dict[str, str]:
        clock = SystemClock()
        ledger = SQLiteLedger(data_dir / "ledger.db", clock=clock)
        await ledger.open()
        tokens = {name: new_token() for name in names}
        for name, token in tokens.items():
            await ledger.put_token(
                TokenRecord(
                    token_id=name,
                    digest=digest(token),
                    user=name,
                    tenant="default",
                    scopes=frozenset(scopes),
                    created_us=clock.now_us(),
                )
            )
        await ledger.close()
        return tokens

    return asyncio.run(add())
