"""Whether a client's Python and packages fit the clusters of this server. Reads metadata only: nothing is imported."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from dask_fleet.model.errors import VersionMismatch

PACKAGES = ("dask", "distributed", "cloudpickle", "msgpack", "tornado", "toolz", "numpy", "pandas", "lz4")
"""What Dask compares between clients, schedulers and workers."""


@functools.cache
def versions_here() -> dict[str, str]:
    """Return the versions in this environment, ``python`` among them."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def differing(client: Mapping[str, str], cluster: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what both have in different versions: the client's and the cluster's by package."""
    return {
        name: (mine, cluster[name]) for name, mine in sorted(client.items()) if name in cluster and cluster[name] != mine
    }


def refuse_mismatch(client: Mapping[str, str], cluster: Mapping[str, str]) -> None:
    """Refuse a client with which Dask would fail: of another Python minor version, or with another ``distributed``.

    Functions travel as bytecode, which is a minor version's own, and the messages between client and scheduler are of no
    version but their own. Other differences are for the client to warn of.

    Raises
    ------
    VersionMismatch
        Naming both versions; ``mismatched`` has all that differ.
    """
    apart = differing(client, cluster)
    fatal = [
        (name, *apart[name])
        for name in ("python", "distributed")
        if name in apart and (name != "python" or _minor(apart[name][0]) != _minor(apart[name][1]))
    ]
    if fatal:
        told = " and ".join(f"{name} {theirs} (yours is {mine})" for name, mine, theirs in fatal)
        raise VersionMismatch(
            f"this server's clusters run {told}; Dask would fail between them. Use an environment with those versions",
            mismatched={name: list(pair) for name, pair in apart.items()},
        )


def _minor(text: str) -> tuple[str, ...]:
    return tuple(text.split(".")[:2])
