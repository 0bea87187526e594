"""How a cluster is just now, for whoever looks at it."""

from __future__ import annotations

import msgspec


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """What the server knows of a living cluster beyond its record. Nothing of it is durable."""

    workers: int
    """Dask workers that have joined and are not leaving."""
    joining: int = 0
    """Those that have been granted slots and have not joined yet."""
    wanted: int
    """Its target, ``n_workers``."""
    waiting_for: str | None = None
    """What it waits for, in a sentence; ``None`` if it has all that was asked for."""
    tasks: int = 0
    """Tasks its scheduler knows that are neither in memory nor erred nor forgotten."""
    clients: int = 0
    idle_s: float = 0.0
    """Since when nothing was computed and no client called; 0 while busy."""
