"""``python -m dask_fleet.agent``."""

from __future__ import annotations

import sys

from dask_fleet.agent.main import main

if __name__ == "__main__":
    sys.exit(main())
