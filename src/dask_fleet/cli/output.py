"""How commands print: tables for people, JSON for programs, answers on standard output and all else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STATUS_STYLE = {
    "queued": "yellow",
    "pending": "yellow",
    "starting": "yellow",
    "closing": "dim",
    "closed": "dim",
    "running": "blue",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "expired": "dim",
}
_PIPE_WIDTH = 10_000


def stdout() -> Console:
    """Return the console for answers; a pipe gets whole lines, not a terminal's width of them."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def stderr() -> Console:
    """Return the console for all that is not the answer."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON. ``indent=None`` makes it one line, for streams."""
    sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str | None = None) -> None:
    """Print a table. Cells are text, never markup: they may come from users."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    stdout().print(table)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one a line; fields without a value are left out."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in fields:
        if value not in (None, "", [], {}):
            grid.add_row(Text(name, style="bold"), value if isinstance(value, Text) else Text(printable(value)))
    stdout().print(grid)


def status_text(status: str) -> Any:
    """Return a status in its colour."""
    from rich.text import Text

    return Text(status, style=STATUS_STYLE.get(status, ""))


def printable(value: Any) -> str:
    """Return text that cannot steer a terminal: control characters of what users sent are shown, not obeyed."""
    text = "" if value is None else str(value)
    return "".join(char if char in "\n\t" or char.isprintable() else f"\\x{ord(char):02x}" for char in text)
