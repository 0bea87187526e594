"""``dask-fleet status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dask_fleet.cli import options


def status(as_json: options.Json = False, url: options.Url = None) -> None:
    """Show the server's state: its queue, its agents, and, to administrators, whom its edge has turned away."""
    from dask_fleet.cli.output import print_fields, print_json
    from dask_fleet.client import Client

    with Client(url) as client:
        document: dict[str, Any] = client.status()
    if as_json:
        print_json(document)
    else:
        print_fields(status_lines(document))


def status_lines(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Tell a status line by line; what a server of another version does not say is left out."""
    agents = document.get("agents", [])
    there = [agent for agent in agents if agent.get("connected")]
    held, slots = (sum(agent.get(name, 0) for agent in there) for name in ("held", "slots"))
    yield "server", f"version {document.get('version', '?')}{', draining' if document.get('draining') else ''}"
    yield "jobs", f"{document.get('queued', 0):,} queued, {document.get('running', 0):,} running"
    yield "agents", f"{len(there)} of {len(agents)} connected, {held} of {slots} slots busy"
    for pause in document.get("paused", []):
        yield "paused", f"{pause.get('user')} until {pause.get('until')}: {pause.get('why')}"
    edge = document.get("edge", {})
    if edge:
        yield "connections", f"{edge.get('connections', 0):,} open, {edge.get('connections_total', 0):,} since the start"
    for name, label in (
        ("connections_refused_total", "… refused"),
        ("connections_timed_out_total", "… timed out"),
        ("tls_handshakes_failed_total", "TLS handshakes failed"),
        ("requests_refused_total", "requests refused"),
        ("large_bodies_refused_total", "large bodies refused"),
        ("tokens_refused_total", "tokens refused"),
    ):
        counts = edge.get(name, {})
        if name in edge:
            yield label, ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count) or "none"
