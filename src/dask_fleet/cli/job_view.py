"""How jobs, attempts and events are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dask_fleet.cli.output import STATUS_STYLE, print_fields, print_table, printable, status_text, stdout
from dask_fleet.client.rendering import params_text

if TYPE_CHECKING:
    from dask_fleet.client import JobEvent

_MAX_CALL_CHARS = 60


def ago(text: str | None, now: datetime) -> str:
    """Return a time as ``5 s``, ``12 min``, ``3 h`` or ``4 d`` ago; nothing for none."""
    if not text:
        return ""
    seconds = (now - datetime.fromisoformat(text)).total_seconds()
    return f"{span(float(round(seconds)))} ago" if seconds >= 1 else "now"


def span(seconds: float) -> str:
    """Return a length of time in the unit that people would choose."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    for unit, length, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < length * limit:
            return f"{seconds / length:.3g} {unit}" if unit == "s" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def took(document: Mapping[str, Any]) -> str:
    """Return how long the run's last attempt took, if it has ended."""
    started, finished = document.get("started_at"), document.get("finished_at")
    if not started or not finished:
        return ""
    return span((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())


def job_row(document: Mapping[str, Any], now: datetime) -> list[Any]:
    """Return a job as a row: id, status, call, user, age, duration."""
    call = f"{document['service']}.{document['endpoint']}({params_text(document)})"
    return [
        document["job_id"],
        status_text(document["status"]),
        call if len(call) <= _MAX_CALL_CHARS else call[: _MAX_CALL_CHARS - 1] + "…",
        document.get("user"),
        ago(document.get("created_at"), now),
        took(document),
    ]


def print_job(document: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> None:
    """Print all there is to know of a job."""
    failure = document.get("error") or {}
    print_fields(
        [
            ("job", document["job_id"]),
            ("status", status_text(document["status"])),
            ("call", f"{document['service']}.{document['endpoint']}({params_text(document)})"),
            ("version", document.get("version")),
            ("user", document.get("user")),
            ("tags", ", ".join(document.get("tags") or ())),
            ("priority", document.get("priority") or None),
            ("run", f"{document.get('run')} ({document.get('reason')})"),
            ("created", document.get("created_at")),
            ("started", document.get("started_at")),
            ("finished", document.get("finished_at")),
            ("took", took(document)),
            ("deadline", document.get("deadline")),
            ("waiting for", document.get("waiting_for")),
            ("progress", _progress_text(document.get("progress") or {})),
            ("cancelled by", document.get("cancel_requested_by")),
            ("result", _result_text(document)),
            ("error", _failure_text(failure)),
            ("traceback", failure.get("traceback")),
        ]
    )
    if attempts:
        print_table(
            ("run", "attempt", "status", "agent", "worker", "started", "finished", "failure"),
            [
                [
                    row.get("run"),
                    row.get("attempt"),
                    status_text(str(row.get("status"))),
                    row.get("agent"),
                    row.get("worker"),
                    row.get("started_at"),
                    row.get("finished_at"),
                    _failure_text(row.get("error") or {}),
                ]
                for row in attempts
            ],
        )


def print_story(document: Mapping[str, Any], story: Mapping[str, Any]) -> None:
    """Print how a job came to its state: a line an event, with its time of day (UTC) and how long after the one before."""
    from rich.text import Text

    console = stdout()
    title = f"{document['service']}.{document['endpoint']}, job {document['job_id']} of {document['user']}: "
    console.print(Text(printable(title)).append_text(status_text(story["status"])), soft_wrap=True)
    day, before = "", None
    for event in story["events"]:
        at = datetime.fromisoformat(event["at"])
        if f"{at:%Y-%m-%d}" != day:
            day = f"{at:%Y-%m-%d}"
            console.print(Text(f"{day} (UTC)", style="dim"))
        since = "" if before is None else f"+{span((at - before).total_seconds())}"
        before = at
        line = Text(f"  {at:%H:%M:%S}.{at.microsecond // 1000:03d}  {since:>9}  ", style="dim")
        line.append(printable(event["text"]), style=STATUS_STYLE.get(event["kind"], "not dim") + " not dim")
        console.print(line, soft_wrap=True)
    console.print(Text(printable(story["standing"])), soft_wrap=True)
    if story["cure"]:
        console.print(Text(printable(story["cure"])), soft_wrap=True)


def event_text(event: JobEvent) -> Any:
    """Return an event as one line."""
    from rich.text import Text

    if event.kind == "progress":
        rest = _progress_text(event.data)
    else:
        rest = event.text or " ".join(f"{name}={value}" for name, value in event.data.items())
    line = Text(f"{event.at:<28}  ", style="dim")
    line.append(f"{event.kind:<16}", style=STATUS_STYLE.get(event.kind, ""))
    place = "" if event.text else f"run {event.run} attempt {event.attempt}  "
    return line.append(printable(f"{place}{rest}".rstrip()), style="not dim")


def _failure_text(failure: Mapping[str, Any]) -> str:
    if not failure:
        return ""
    kind = f"{failure['type']}: " if failure.get("type") else ""
    signal = f" ({failure['signal']})" if failure.get("signal") else ""
    return f"{failure.get('cause')}{signal}: {kind}{failure.get('message') or ''}"


def _progress_text(progress: Mapping[str, Any]) -> str:
    if not progress:
        return ""
    return f"{progress.get('done'):g}/{progress.get('total'):g} {progress.get('text') or ''}".rstrip()


def _result_text(document: Mapping[str, Any]) -> str:
    if not document.get("result_media_type"):
        return ""
    until = f", kept until {document['result_expires_at']}" if document.get("result_expires_at") else ""
    return f"{document['result_media_type']}, {document.get('result_size') or 0:,} bytes{until}"
