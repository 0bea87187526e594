"""``dask-fleet serve``. Imports nothing that the server process must not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dask_fleet.cli import options


def serve(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE_OR_MODULE]...",
            help="Python files or modules that hold services.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8000")] = None,
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="off|auto", help="auto: speak TLS with a certificate that the server makes itself.", show_default="off"
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Speak TLS with this certificate (PEM, with its chain).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's private key (PEM).")] = None,
    data_dir: options.DataDir = None,
    nworkers: Annotated[
        int | None, typer.Option(help="Worker processes of the local agent.", show_default="the CPUs there are")
    ] = None,
    nthreads: Annotated[int | None, typer.Option(help="Threads of each worker process.", show_default="1")] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of each worker process: 4GiB, none or auto.", show_default="what there is, shared"
        ),
    ] = None,
    resources: Annotated[
        str | None,
        typer.Option(metavar="NAME=AMOUNT,...", help="Named resources of this host, such as GPU=2.", show_default="none"),
    ] = None,
    agent: Annotated[
        bool | None, typer.Option("--agent/--no-agent", help="Whether to start a local agent.", show_default="--agent")
    ] = None,
    orphan_timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long the agent goes on without its server.", show_default="60s"),
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option(help="Jobs that may wait; more are answered with 429.", show_default="100000")
    ] = None,
    max_clusters_per_user: Annotated[
        int | None, typer.Option(help="Dask clusters that one user may have at a time.", show_default="20")
    ] = None,
    max_cluster_workers: Annotated[
        int | None, typer.Option(help="Dask workers that one cluster may ask for.", show_default="no limit")
    ] = None,
    spare_clusters: Annotated[
        int | None,
        typer.Option(help="Dask clusters that each pool keeps ready for active tenants; 0 for none.", show_default="1"),
    ] = None,
    max_connections_per_peer: Annotated[
        int | None, typer.Option(help="Open connections that one address may have.", show_default="512")
    ] = None,
    drain_timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long running jobs may go on at the end.", show_default="30s"),
    ] = None,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Names a proxy passes on in Host, with commas.", show_default="none"),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    config: options.Config = None,
    services: Annotated[
        bool, typer.Option("--services/--no-services", help="Whether there are services, or Dask clusters only.")
    ] = True,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End with the process of that number.")] = None,
) -> None:
    """Serve the functions of Python modules as a durable job API, and Dask clusters.

    Starts the server and one local agent. The token is in DATA_DIR/token.
    """
    if services and not targets:
        raise typer.BadParameter("Missing argument 'FILE_OR_MODULE'; for Dask clusters alone say --no-services")
    if targets and not services:
        raise typer.BadParameter("--no-services takes no FILE_OR_MODULE")
    from dask_fleet.config import load_here
    from dask_fleet.observability import logs
    from dask_fleet.server.serve import run

    settings = load_here(
        {
            "host": host,
            "port": port,
            "tls": tls,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "data_dir": data_dir,
            "nworkers": nworkers,
            "nthreads": nthreads,
            "memory_limit": memory_limit,
            "resources": resources,
            "agent": agent,
            "orphan_timeout": orphan_timeout,
            "max_queued": max_queued,
            "max_clusters_per_user": max_clusters_per_user,
            "max_cluster_workers": max_cluster_workers,
            "spare_clusters": spare_clusters,
            "max_connections_per_peer": max_connections_per_peer,
            "drain_timeout": drain_timeout,
            "allowed_hosts": allowed_hosts,
            "log_level": log_level,
            "log_format": log_format,
            "config": config,
        }
    ).settings
    logs.configure(settings.log_level, settings.log_format)
    raise typer.Exit(run(settings, targets or [], parent=parent))
