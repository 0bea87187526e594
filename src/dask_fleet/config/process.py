"""The settings of this very process: the one place that reads its environment and working folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_fleet.config.discovery import load_client
from dask_fleet.config.sources import Loaded, load


def load_here(flags: Mapping[str, Any]) -> Loaded:
    """Return `load` of this process's environment and working folder."""
    return load(os.environ, flags, Path.cwd())


def load_client_here(flags: Mapping[str, Any]) -> Loaded:
    """Return `load_client` of this process's environment and working folder."""
    return load_client(os.environ, flags, Path.cwd())
