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
CAFile = Annotated[
    Path | None,
    typer.Option("--ca-file", metavar="FILE", help="Certificates (PEM) of the authorities that vouch for the server."),
]
Fingerprint = Annotated[
    str | None,
    typer.Option(
        "--fingerprint", metavar="sha256:…", help="The server's key, as it prints it; nothing else is trusted then."
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
