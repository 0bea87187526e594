"""``dask-fleet``, and the same as ``dask fleet``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dask_fleet
from dask_fleet.cli import agent, agents, call, clusters, config, doctor, jobs, serve, status, tokens
from dask_fleet.model.errors import FleetError

if TYPE_CHECKING:
    import click

app = typer.Typer(
    name="dask-fleet",
    help="Serve typed Python functions as durable, deduplicating jobs, and call them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("agent")(agent.agent)
app.command("call")(call.call)
app.add_typer(jobs.app, name="jobs")
app.add_typer(clusters.app, name="clusters")
app.add_typer(tokens.app, name="tokens")
app.add_typer(agents.app, name="agents")
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)
app.command("status")(status.status)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dask-fleet {dask_fleet.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve typed Python functions as durable, deduplicating jobs, and call them."""


def main(args: Sequence[str] | None = None, *, prog_name: str = "dask-fleet") -> None:
    """Run a command line and exit.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 78 refused to listen there, 130 interrupted.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        app(given, prog_name=prog_name)
    except FleetError as error:
        from dask_fleet.cli.failures import exit_code, report

        report(error, as_json="--json" in given)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _dask_command() -> click.Command:
    """Return the command that Dask's own command line adds as ``dask fleet``.

    Dask wants a command of the ``click`` it uses itself, which need not be the one inside typer: so this is a door, behind
    which all arguments go to `main` as they are.
    """
    import click

    @click.command(
        "fleet",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        short_help="Serve functions as durable jobs, and call them.",
    )
    @click.argument("args", nargs=-1, type=click.UNPROCESSED)
    def fleet(args: tuple[str, ...]) -> None:
        main(args, prog_name="dask fleet")

    return fleet


def __getattr__(name: str) -> Any:
    """Make `dask_command` when Dask asks for it: ``dask-fleet`` itself has no need of a second click."""
    if name == "dask_command":
        return _dask_command()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
