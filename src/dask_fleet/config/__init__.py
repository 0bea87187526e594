"""Settings: defaults < ``fleet.yaml`` < ``FLEET_*`` variables < flags, each value with its origin."""

from __future__ import annotations

from dask_fleet.config.discovery import load_client
from dask_fleet.config.process import load_client_here, load_here
from dask_fleet.config.secret import Secret
from dask_fleet.config.settings import Settings
from dask_fleet.config.sources import Loaded, load

__all__ = ["Loaded", "Secret", "Settings", "load", "load_client", "load_client_here", "load_here"]
