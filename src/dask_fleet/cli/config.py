"""``dask-fleet config``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from dask_fleet.cli import options

app = typer.Typer(help="Show the settings and where each comes from.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Show the settings and where each comes from."""


@app.command()
def show(
    data_dir: options.DataDir = None,
    config: options.Config = None,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Show every setting with its value and its origin: default, file, variable or flag."""
    from dask_fleet.cli.output import print_json, print_table
    from dask_fleet.config import load_client_here
    from dask_fleet.config.parsers import public_name

    loaded = load_client_here({"data_dir": data_dir, "config": config, "url": url})
    rows = {
        public_name(field.name): (shown(field.name, getattr(loaded.settings, field.name)), loaded.origins[field.name])
        for field in dataclasses.fields(loaded.settings)
    }
    if as_json:
        print_json({name: {"value": value, "origin": origin} for name, (value, origin) in rows.items()})
    else:
        print_table(("setting", "value", "origin"), [(name, _text(value), origin) for name, (value, origin) in rows.items()])


def shown(name: str, value: Any) -> Any:
    """Return a value as a file would write it; a secret stays one."""
    from dask_fleet.config.durations import format_duration
    from dask_fleet.config.secret import Secret
    from dask_fleet.model.durations import format_bytes

    if isinstance(value, Path | Secret):
        return str(value)
    if name.endswith("_s"):
        return format_duration(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) if isinstance(value, list) else str(value)
