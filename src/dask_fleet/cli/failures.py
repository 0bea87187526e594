"""How a command tells of an error: one line of what, one of the cure, and an exit code that says which kind."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from dask_fleet.model.errors import (
    CapacityError,
    Conflict,
    FleetError,
    InvalidParameters,
    JobError,
    NotFound,
    ResultExpired,
    SetupError,
    WaitTimeout,
)

_SENTENCE = re.compile(r"(?<=[^.\s]{2}[.!?])\s+(?=[A-Z])")
_REFRESH = "With the command line: `dask-fleet call SERVICE.ENDPOINT … --refresh`."


def exit_code(error: FleetError) -> int:
    """Return the process's exit code: of errors at start their own, else 1."""
    return error.exit_code if isinstance(error, SetupError) else 1


def told(error: FleetError) -> tuple[str, str]:
    """Return what went wrong, and what to do about it (may be empty)."""
    job_id = error.extra.get("job_id")
    cures: list[tuple[type[FleetError], Callable[[], str]]] = [
        (WaitTimeout, lambda: f"Get the result later with `dask-fleet jobs result {job_id}`."),
        (JobError, lambda: f"See its attempts with `dask-fleet jobs show {job_id}`; run it again with `jobs retry`."),
        (ResultExpired, lambda: "Call the endpoint again to compute it anew."),
        (CapacityError, lambda: "Nothing is wrong with the request: send it again in a while."),
        (NotFound, lambda: _where_to_look(error.detail)),
        (Conflict, lambda: _REFRESH if error.extra.get("job_status") == "succeeded" else ""),
    ]
    what, *rest = _SENTENCE.split(error.detail, maxsplit=1)
    if isinstance(error, WaitTimeout) and "; it goes on" in what:
        what = what.partition("; it goes on")[0] + "; it goes on"
        rest = []
    if rest:
        return what, rest[0]
    for cls, cure in cures:
        if isinstance(error, cls) and (job_id is not None or cls not in {WaitTimeout, JobError}):
            return what, cure()
    return what, ""


def _where_to_look(detail: str) -> str:
    """Return which command lists what was not found; nothing if the message says what there is itself."""
    for thing, cure in (
        ("no such job", "`dask-fleet jobs list` shows the jobs."),
        ("no such cluster", "`dask-fleet clusters list` shows those that live, with --all ended ones too."),
    ):
        if detail.startswith(thing):
            return cure
    return ""


def fields_told(error: FleetError) -> list[str]:
    """Return a line for each parameter that was refused."""
    failure = error.extra.get("failure") or {}
    errors = error.extra.get("errors") or failure.get("errors") or []
    lines = []
    for entry in errors:
        if isinstance(entry, dict):
            place = entry.get("loc") or entry.get("field") or entry.get("pointer") or ""
            name = ".".join(map(str, place)) if isinstance(place, list) else str(place)
            lines.append(f"{name or '(all)'}: {entry.get('msg') or entry.get('message') or entry.get('detail') or entry}")
    return lines


def report(error: FleetError, *, as_json: bool = False) -> None:
    """Print an error to standard error."""
    if as_json:
        document: dict[str, Any] = {"code": error.code, "detail": error.detail, **error.extra}
        sys.stderr.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
        return
    from rich.text import Text

    from dask_fleet.cli.output import printable, stderr

    console = stderr()
    what, cure = told(error)
    console.print(Text("error: ", style="bold red") + Text(printable(what), style="red"), soft_wrap=True)
    if isinstance(error, InvalidParameters | JobError):
        for line in fields_told(error):
            if line in what:
                continue  # a single field's fault is the whole message already
            console.print(Text(f"  {printable(line)}"), soft_wrap=True)
    if isinstance(error, JobError) and error.failure and error.failure.get("traceback"):
        console.print(Text(printable(error.failure["traceback"]).rstrip(), style="dim"), soft_wrap=True)
    if cure:
        console.print(Text(printable(cure)), soft_wrap=True)
