"""Finds implementations of ports by entry point: ours and other people's alike."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from dask_fleet.model.errors import ConfigError

GROUPS = {
    "ledger": "dask_fleet.ledgers",
    "result_store": "dask_fleet.result_stores",
    "codec": "dask_fleet.codecs",
    "backend": "dask_fleet.backends",
}


def names(port: str) -> list[str]:
    """Return the installed implementations of a port, sorted."""
    return sorted({point.name for point in entry_points(group=GROUPS[port])})


def load(port: str, name: str) -> Any:
    """Return the class registered as `name`, or named by dotted path ``package.module:Class``.

    Raises
    ------
    ConfigError
        If there is none; the message lists what is installed.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as exc:
            raise ConfigError(f"cannot load the {port} {name!r}: {exc}") from exc
    for point in entry_points(group=GROUPS[port], name=name):
        return point.load()
    raise ConfigError(f"unknown {port} {name!r}; installed: {', '.join(names(port)) or 'none'}")
