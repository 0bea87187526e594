"""``dask-fleet agent``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dask_fleet.cli import options


def agent(
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server to dial.", show_default="the one that runs from the data folder"),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the agent's token.", show_default="DATA_DIR/agent.token")
    ] = None,
    data_dir: options.DataDir = None,
    name: Annotated[str, typer.Option(help="Name for people.")] = "local",
    nworkers: Annotated[int | None, typer.Option(help="Worker processes.", show_default="the CPUs there are")] = None,
    nthreads: Annotated[int | None, typer.Option(help="Threads of each.", show_default="1")] = None,
    orphan_timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long to go on without the server.", show_default="60s")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    config: options.Config = None,
) -> None:
    """Run an agent: it dials the server and keeps worker processes warm.

    `serve` starts one by itself; use this beside `serve --no-agent`.
    """
    from dask_fleet.agent.main import run
    from dask_fleet.agent.options import AgentOptions
    from dask_fleet.config import load_here
    from dask_fleet.config.discovery import AGENT_TOKEN_FILE, SERVER_FILE
    from dask_fleet.observability import logs

    loaded = load_here(
        {
            "url": server,
            "data_dir": data_dir,
            "nworkers": nworkers,
            "nthreads": nthreads,
            "orphan_timeout": orphan_timeout,
            "log_level": log_level,
            "log_format": log_format,
            "config": config,
        }
    )
    settings = loaded.settings
    named = loaded.origins["url"] != "default"
    folder = settings.data_dir.absolute()
    logs.configure(settings.log_level, settings.log_format)
    code = run(
        AgentOptions(
            server=settings.url if named else None,
            server_file=None if named else folder / SERVER_FILE,
            token_file=(token_file or folder / AGENT_TOKEN_FILE).absolute(),
            data_dir=folder,
            name=name,
            nworkers=settings.nworkers,
            nthreads=settings.nthreads,
            orphan_timeout_s=settings.orphan_timeout_s,
        )
    )
    raise typer.Exit(code or 0)
