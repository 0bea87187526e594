"""``dask-fleet agents``."""

from __future__ import annotations

from typing import Any

import typer

from dask_fleet.cli import options

app = typer.Typer(help="See the agents that run the jobs.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """See the agents that run the jobs."""


@app.command("list")
def list_agents(as_json: options.Json = False, url: options.Url = None) -> None:
    """List the agents the server knows, with their slots and what keeps them from running jobs."""
    from dask_fleet.cli.output import print_json, print_table
    from dask_fleet.client import Client

    with Client(url) as client:
        agents: list[dict[str, Any]] = client.status().get("agents", [])
    if as_json:
        print_json(agents)
        return
    rows = [
        (
            agent["name"],
            agent.get("host", ""),
            agent.get("pool", ""),
            "yes" if agent["connected"] else "no",
            f"{agent['held']} of {agent['slots']}",
            "; ".join(agent.get("problems", {}).values()),
        )
        for agent in agents
    ]
    caption = None if rows else "No agent is known. Start one with `dask-fleet agent`, or the server without --no-agent."
    print_table(("name", "host", "pool", "connected", "busy", "problems"), rows, caption=caption)
