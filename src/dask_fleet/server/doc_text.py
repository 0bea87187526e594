"""Docstrings as HTML: paragraphs and code, and nothing else of what their text may hold."""

from __future__ import annotations

import re
from html import escape

_BLANK_LINES = re.compile(r"\n\s*\n")
_CODE = re.compile(r"(`{1,2})([^`\n]+)\1")
_KEPT = re.compile(r"\s|[-*+] |\d+[.)] |>>>|[-=~^]{3,}\Z")


def doc_html(text: str) -> str:
    """Return the paragraphs of a docstring.

    Lines of a paragraph are joined, as its author wrapped them for an editor; where one is indented or begins an item
    they stay as they are.
    """
    paragraphs = []
    for block in _BLANK_LINES.split(text.strip("\n")):
        lines = [line for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        if any(_KEPT.match(line) for line in lines):
            paragraphs.append(f'<p class="doc kept">{inline_html(chr(10).join(lines))}</p>')
        else:
            paragraphs.append(f'<p class="doc">{inline_html(" ".join(line.strip() for line in lines))}</p>')
    return "".join(paragraphs)


def inline_html(text: str) -> str:
    """Return a text with what stands in backticks as code."""
    return _CODE.sub(r"<code>\2</code>", escape(text))
