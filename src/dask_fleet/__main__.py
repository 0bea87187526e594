"""``python -m dask_fleet`` is ``dask-fleet``."""

from __future__ import annotations

from dask_fleet.cli.main import main

if __name__ == "__main__":
    main()
