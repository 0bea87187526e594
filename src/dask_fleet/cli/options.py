"""Options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server. Else FLEET_URL, fleet.yaml, or the server that runs from this folder.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Read this instead of ./fleet.yaml (or FLEET_CONFIG)."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Folder of ledger, results and token.", show_default=".fleet"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the result's bytes there; - is standard output."),
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="DURATION", help="Stop waiting after this; the job goes on.")
]
