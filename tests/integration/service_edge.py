"""A service whose function runs until the test lets it end."""

import os
import time
from pathlib import Path

from dask_fleet import Service

service = Service("edge")


@service.endpoint
def gated() -> str:
    """Wait until the gate is there."""
    deadline = time.monotonic() + 90
    while not Path(os.environ["EDGE_GATE"]).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "through"
