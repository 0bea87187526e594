"""Under which address the rest of the fleet reaches what listens here."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

from dask_fleet.agent.address import read_address
from dask_fleet.agent.options import AgentOptions
from dask_fleet.model.errors import SetupError

LOOPBACK = "127.0.0.1"


def cluster_host(options: AgentOptions) -> str:
    """Return the address on which schedulers and Dask workers of this agent listen; never a wildcard.

    Unless told, it is the one from which this host reaches the server: whoever else reaches the
    server is likely to reach it, too.
    """
    if options.cluster_host:
        return options.cluster_host
    try:
        address = read_address(options)
    except (OSError, ValueError, SetupError):
        return LOOPBACK
    return facing(address.host, address.port)


def facing(host: str, port: int) -> str:
    """Return the address of this host that faces that one. Sends nothing."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host
    if host == "localhost":
        return LOOPBACK
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK
