"""Progress bars: rich in a terminal, plain HTML in a notebook, nothing where nobody looks."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self


class Bar(Protocol):
    """Something that shows how far it is."""

    def update(self, done: float, total: float | None, text: str = "") -> None:
        """Show `done` of `total` (``None``: unknown) and a text."""
        ...


class SilentBar:
    """Shows nothing: output that nobody watches stays clean."""

    def update(self, done: float, total: float | None, text: str = "") -> None:
        """Do nothing."""


class TerminalBar:
    """A bar of rich, on standard error."""

    def __init__(self, title: str, console: Any) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._title = title
        self._task = self._progress.add_task(title, total=None, count="")

    def update(self, done: float, total: float | None, text: str = "") -> None:
        """Show it."""
        description = f"{self._title}  {text}" if text else self._title
        count = count_text(done, total)
        self._progress.update(self._task, completed=done, total=total, description=description, count=count)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class NotebookBar:
    """A bar of HTML that replaces itself: needs no widgets and stays readable in a saved notebook."""

    def __init__(self, title: str, display: Any, html_class: Any) -> None:
        self._title = title
        self._html = html_class
        self._handle = display(html_class(bar_html(title, 0, None, "")), display_id=True)

    def update(self, done: float, total: float | None, text: str = "") -> None:
        """Show it."""
        if self._handle is not None:
            self._handle.update(self._html(bar_html(self._title, done, total, text)))


def count_text(done: float, total: float | None) -> str:
    """Return ``3/10``; whole numbers without a point; nothing if nothing is known."""
    if total is None:
        return f"{done:g}" if done else ""
    return f"{done:g}/{total:g}"


def bar_html(title: str, done: float, total: float | None, text: str) -> str:
    """Return the bar as HTML; every text is escaped."""
    value = f' value="{done:g}" max="{total:g}"' if total else ""
    shown = f"{count_text(done, total)} {text}".strip()
    return f"<div>{html.escape(title)} <progress{value}></progress> {html.escape(shown)}</div>"


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel (asked without importing IPython where it is not in use)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def open_bar(title: str) -> Iterator[Bar]:
    """Open the bar that fits where this runs; it is gone (terminal) or final (notebook) at the end."""
    if in_notebook():
        from IPython.display import HTML, display

        yield NotebookBar(title, display, HTML)
        return
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console

        with TerminalBar(title, Console(stderr=True)) as bar:
            yield bar
        return
    yield SilentBar()
