"""How logs of jobs are shown in a terminal. Jobs write what they like: by default none of it steers the terminal."""

from __future__ import annotations

import re
import sys

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS and the like, up to their end: titles, links, clipboard
    r"|[ -/]*[0-~])?"  # the rest
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def tame(text: str) -> str:
    """Return `text` without escape sequences and control characters; what overwrites its line becomes lines of its own."""
    text = _CONTROLS.sub("", _ESCAPES.sub("", text))
    return text.replace("\r\n", "\n").replace("\r", "\n")


class LogPrinter:
    """Prints pieces of logs as they come, with a heading where another stream goes on."""

    def __init__(self, *, raw: bool, headings: bool) -> None:
        self._raw = raw
        self._headings = headings
        self._last: tuple[int, str] | None = None
        self._at_line_start = True

    def show(self, attempt: int, stream: str, text: str) -> None:
        """Print a piece."""
        if self._headings and (attempt, stream) != self._last:
            gap = "" if self._last is None else "\n" if self._at_line_start else "\n\n"
            sys.stdout.write(f"{gap}==> attempt {attempt} {stream} <==\n")
            self._last = (attempt, stream)
        self.write(text)

    def write(self, text: str) -> None:
        """Print text as it is to be shown."""
        shown = text if self._raw else tame(text)
        if shown:
            sys.stdout.write(shown)
            self._at_line_start = shown.endswith("\n")
        sys.stdout.flush()
