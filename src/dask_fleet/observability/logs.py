"""Structured logs: one line an event, with its ids, on standard error.

A record carries what it is about in ``extra``: ``log.info("attempt finished", extra={"action": "finish", "job_id": …})``.
Nothing is ever written to standard output: that belongs to what a command answers.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import sys
from typing import TextIO

ROOT = "dask_fleet"

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SECRETS = re.compile(
    r"(?i)(\bbearer\s+|\bauthorization['\"]?\s*[:=]\s*['\"]?(?:basic\s+|bearer\s+)?|[?&](?:token|code|access_token)=)"
    r"[^\s'\"&,;)}\]]+"
)
_TOKEN = re.compile(r"\bfleet_[A-Za-z0-9_-]{43}")


def redact(text: str) -> str:
    """Return `text` with tokens blotted out: after ``Bearer``, in Authorization headers, in queries, and ours anywhere."""
    return _TOKEN.sub("[redacted]", _SECRETS.sub(r"\1[redacted]", text))


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _PLAIN and not key.startswith("_")}


def _time(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z INFO  dask_fleet.server: listening  action=listen port=8000``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line (and a traceback below it), redacted; line ends inside values cannot forge another line."""
        extra = "".join(f" {key}={_shown(value)}" for key, value in _extra(record).items())
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {message}{' ' if extra else ''}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, redacted; a value that JSON does not know is written as its text."""
        document: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for key, value in _extra(record).items():
            document.setdefault(key, redact(value) if isinstance(value, str) else value)
        if record.exc_info:
            document["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(document, default=lambda value: redact(str(value)), ensure_ascii=False)


def _shown(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r"[\s\"=]", text) else text


def configure(level: str = "info", format: str = "text", *, stream: TextIO | None = None) -> None:  # noqa: A002
    """Send all logs of this process to standard error, replacing what an earlier call set up.

    Parameters
    ----------
    level
        Least severe level of Fleet's own lines (``debug``, ``info``, ``warning``, ``error``). Other libraries' lines are
        written from ``warning`` up.
    format
        ``text`` or ``json``.
    stream
        Another place than standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    handler.set_name(ROOT)
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == ROOT]:
        root.removeHandler(old)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger(ROOT).setLevel(number)
