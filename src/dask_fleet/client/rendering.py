"""How a job shows itself in a terminal and in a notebook."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

_MAX_PARAMS_CHARS = 120
_COLOURS = {
    "queued": "#8a6d00",
    "running": "#1f6feb",
    "succeeded": "#1a7f37",
    "failed": "#cf222e",
    "cancelled": "#6e7781",
    "expired": "#6e7781",
}


def params_text(document: Mapping[str, Any]) -> str:
    """Return the parameters as a call shows them, cut to one line."""
    params = document.get("params") or {}
    text = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in params.items())
    return text if len(text) <= _MAX_PARAMS_CHARS else text[: _MAX_PARAMS_CHARS - 1] + "…"


def job_text(kind: str, document: Mapping[str, Any]) -> str:
    """Return ``<Job flights.delay_by_carrier(month=1) running 3q5w…>``."""
    name = f"{document.get('service')}.{document.get('endpoint')}"
    return f"<{kind} {name}({params_text(document)}) {document.get('status')} {document.get('job_id')}>"


def job_html(document: Mapping[str, Any]) -> str:
    """Return a small table. Every text in it came from users and is escaped."""
    status = str(document.get("status"))
    rows = {
        "job": document.get("job_id"),
        "call": f"{document.get('service')}.{document.get('endpoint')}({params_text(document)})",
        "run / attempt": f"{document.get('run')} / {document.get('attempt')}",
        "created": document.get("created_at"),
        "finished": document.get("finished_at"),
        "waiting for": document.get("waiting_for"),
    }
    failure = document.get("error")
    if failure:
        rows["error"] = f"{failure.get('cause')}: {failure.get('type') or ''} {failure.get('message') or ''}"
    badge = (
        f'<tr><th style="text-align:left">status</th><td style="text-align:left;color:{_COLOURS.get(status, "inherit")}">'
        f"<b>{html.escape(status)}</b></td></tr>"
    )
    body = "".join(
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
        if value
    )
    return f"<table>{badge}{body}</table>"
