"""``dask-fleet tokens``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dask_fleet.cli import completions, options

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(help="Make, list and revoke tokens.", no_args_is_help=True)

_SCOPES = ("submit", "read", "run_code", "agent", "admin")


@app.command()
def create(
    user: Annotated[str, typer.Option(help="Whose it is: jobs bear this name.")],
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPES",
            help=f"What it may do, with commas: {', '.join(_SCOPES)}.",
            autocompletion=lambda: list(_SCOPES),
        ),
    ],
    tenant: Annotated[str | None, typer.Option(help="Who shares its jobs and results.", show_default="your own")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION|never", help="When it ends by itself.", show_default="90d")
    ] = None,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Make a token and print it: the only time it is shown.

    The token alone goes to standard output, so that it can be sent into a file or a password store.
    """
    from dask_fleet.cli.output import print_json, stderr
    from dask_fleet.client import Client

    scopes = [name.strip() for part in scope for name in part.split(",") if name.strip()]
    with Client(url) as client:
        made = client.create_token(user=user, scopes=scopes, tenant=tenant, expires=expires)
    if as_json:
        print_json(made)
        return
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is revoked"
    stderr().print(
        f"token {made['token_id']} of {made['user']} (tenant {made['tenant']}; {', '.join(made['scopes'])}), {until}."
        " It is not shown again.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    typer.echo(made["token"])


@app.command("list")
def list_tokens(
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """List tokens: who has them and what they may do, never the tokens themselves."""
    from dask_fleet.cli.job_view import ago
    from dask_fleet.cli.output import print_json, print_table
    from dask_fleet.client import Client

    now = datetime.now(UTC)
    with Client(url) as client:
        found = [token for token in client.list_tokens() if every or standing(token, now) == "valid"]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            token["token_id"],
            token["user"],
            token["tenant"],
            ", ".join(token["scopes"]),
            standing(token, now),
            ago(token["created_at"], now),
            token["expires_at"] or "never",
        ]
        for token in found
    ]
    print_table(("token", "user", "tenant", "scopes", "status", "created", "expires"), rows)


@app.command()
def revoke(
    token_ids: Annotated[
        list[str],
        typer.Argument(metavar="TOKEN_ID", help="As `tokens list` shows them.", autocompletion=completions.token_ids),
    ],
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """End tokens for good; what they have open ends within seconds."""
    from dask_fleet.cli.output import print_json
    from dask_fleet.client import Client

    with Client(url) as client:
        revoked = [client.revoke_token(token_id) for token_id in token_ids]
    if as_json:
        print_json(revoked)
        return
    for token in revoked:
        typer.echo(f"{token['token_id']} of {token['user']} revoked")


def standing(token: Mapping[str, Any], now: datetime) -> str:
    """Return ``valid``, ``expired`` or ``revoked``."""
    if token["revoked_at"]:
        return "revoked"
    expires = token["expires_at"]
    return "expired" if expires and datetime.fromisoformat(expires) <= now else "valid"
