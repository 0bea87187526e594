"""A job that opens connections long after its certificate was signed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from dask_fleet import Service, get_client

service = Service("renewals")


@service.endpoint(timeout=120, placement="cluster", workers=1)
def outlives(path: str) -> dict[str, Any]:
    """Wait for a file, then speak with the scheduler over new connections."""
    client = get_client()
    held = client.submit(lambda: [1, 2, 3], pure=False)
    before = held.result()
    begun = time.time()
    Path(path + ".started").touch()
    while not Path(path).exists():
        time.sleep(0.05)
    # More calls at once than connections were open: the others are new.
    client.sync(_ask_at_once, client, 5)
    return {"before": before, "after": held.result(), "seconds": time.time() - begun}


async def _ask_at_once(client: Any, times: int) -> None:
    await asyncio.gather(*(client.scheduler.identity(n_workers=0) for _ in range(times)))
