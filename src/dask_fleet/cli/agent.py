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
    ca_file: options.CAFile = None,
    fingerprint: options.Fingerprint = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The agent's folder: its lock, and results on their way.",
            show_default="the server's; with --server, one of its own for this user, host, server and name",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name for people.", show_default="local; with --server, this host's")
    ] = None,
    pool: Annotated[str, typer.Option(help="What kind of agent it is, for people.")] = "default",
    nworkers: Annotated[int | None, typer.Option(help="Worker processes.", show_default="the CPUs there are")] = None,
    nthreads: Annotated[int | None, typer.Option(help="Threads of each.", show_default="1")] = None,
    lifetime: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Then take nothing new, let what runs end, and end.", show_default="no end"
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of each process: 4GiB, none or auto.", show_default="what there is, shared"
        ),
    ] = None,
    resources: Annotated[
        str | None,
        typer.Option(metavar="NAME=AMOUNT,...", help="Named resources of this host, such as GPU=2.", show_default="none"),
    ] = None,
    orphan_timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long to go on without the server.", show_default="60s")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    config: options.Config = None,
) -> None:
    """Run an agent: it dials the server and keeps worker processes warm.

    `serve` starts one by itself; use this beside `serve --no-agent`, or with --server on another host. The services must be
    importable here too, under the same paths or names as on the server.
    """
    import os
    import socket

    from dask_fleet.agent.home import default_data_dir, state_folder
    from dask_fleet.agent.main import run
    from dask_fleet.agent.options import AgentOptions
    from dask_fleet.cli.durations import duration
    from dask_fleet.config import load_here
    from dask_fleet.config.discovery import AGENT_TOKEN_FILE, SERVER_FILE
    from dask_fleet.config.trust import Trust
    from dask_fleet.model.errors import ConfigError
    from dask_fleet.observability import logs

    loaded = load_here(
        {
            "url": server,
            "ca_file": ca_file,
            "fingerprint": fingerprint,
            "data_dir": data_dir,
            "nworkers": nworkers,
            "nthreads": nthreads,
            "memory_limit": memory_limit,
            "resources": resources,
            "orphan_timeout": orphan_timeout,
            "log_level": log_level,
            "log_format": log_format,
            "config": config,
        }
    )
    settings = loaded.settings
    Trust(ca_file=settings.ca_file, fingerprint=settings.fingerprint)  # refuses both at once
    named = loaded.origins["url"] != "default"
    served = settings.data_dir.absolute()
    folder, host = served, socket.gethostname()
    shown = name or (host.partition(".")[0] if named else "local")
    if named and loaded.origins["data_dir"] == "default":
        folder = default_data_dir(settings.url, shown, host, state=state_folder(os.environ, Path.home()))
    logs.configure(settings.log_level, settings.log_format)
    try:
        given = AgentOptions(
            server=settings.url if named else None,
            server_file=None if named else folder / SERVER_FILE,
            token_file=(token_file or served / AGENT_TOKEN_FILE).absolute(),
            data_dir=folder,
            ca_file=None if settings.ca_file is None else settings.ca_file.absolute(),
            fingerprint=settings.fingerprint,
            name=shown,
            pool=pool,
            nworkers=settings.nworkers,
            nthreads=settings.nthreads,
            spares=settings.spare_schedulers,
            resources=settings.resources,
            scheduler_memory_limit=settings.scheduler_memory_limit,
            certificate_lifetime_s=settings.certificate_lifetime_s,
            cluster_host=settings.cluster_host or "",
            lifetime_s=None if lifetime is None else duration("--lifetime", lifetime),
            memory_limit=settings.memory_limit,
            orphan_timeout_s=settings.orphan_timeout_s,
        )
    except ValueError as exc:
        raise ConfigError(f"the agent cannot be started like this: {exc}") from exc
    raise typer.Exit(run(given) or 0)
