"""``dask-fleet doctor``."""

from __future__ import annotations

import typer

from dask_fleet.cli import options


def doctor(
    data_dir: options.DataDir = None,
    config: options.Config = None,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Check this machine and the server, and say what to do about what is wrong. Exits with 1 if something is."""
    import dataclasses

    from dask_fleet.cli.checks import run_checks
    from dask_fleet.cli.output import print_json, printable, stdout

    checks = run_checks({"data_dir": data_dir, "config": config, "url": url})
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        from rich.text import Text

        marks = {True: ("✓", "green"), False: ("✗", "red"), None: ("-", "dim")}
        console = stdout()
        for check in checks:
            mark, style = marks[check.ok]
            console.print(Text(f"{mark} ", style=style) + Text(f"{check.name}: {printable(check.detail)}"), soft_wrap=True)
            if check.ok is False and check.cure:
                console.print(Text(f"    {printable(check.cure)}", style="yellow"), soft_wrap=True)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
