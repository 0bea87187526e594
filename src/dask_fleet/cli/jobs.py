"""``dask-fleet jobs``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dask_fleet.cli import completions, options
from dask_fleet.model.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from dask_fleet.client import Client, Job

app = typer.Typer(help="List, show, cancel, retry and watch jobs.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", autocompletion=completions.job_ids)]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB_ID", autocompletion=completions.job_ids)]
_STREAMS = ("all", "stdout", "stderr", "log")
_STATES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")


@app.command("list")
def list_jobs(
    state: Annotated[
        str | None,
        typer.Option(
            "--status", "--state", "-s", help=f"One of {', '.join(_STATES)}.", autocompletion=lambda: list(_STATES)
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            "-e",
            metavar="SERVICE[.ENDPOINT]",
            help="Of one service, or of one of its endpoints.",
            autocompletion=completions.endpoints,
        ),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Who asked first.")] = None,
    tag: Annotated[str | None, typer.Option(help="A word given with the call.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DURATION|TIME", help="First asked for since then: 2h, 7d, or a time.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="DURATION|TIME", help="First asked for before then.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many at most.")] = 50,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """List jobs, newest first."""
    from dask_fleet.cli.job_view import job_row
    from dask_fleet.cli.output import print_json, print_table
    from dask_fleet.client import Client

    service, _, name = (endpoint or "").partition(".")
    with Client(url) as client:
        found = [
            job.document
            for job in client.jobs(
                state=state,
                service=service or None,
                endpoint=name or None,
                user=user,
                tag=tag,
                created_after=moment("--since", since),
                created_before=moment("--until", until),
                limit=limit,
            )
        ]
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    caption = f"the newest {limit}; more with --limit" if len(found) == limit else None
    if not found:
        caption = "No such job. `dask-fleet call` shows what can be called."
    print_table(
        ("job", "status", "call", "user", "created", "took"), [job_row(document, now) for document in found], caption=caption
    )


@app.command()
def show(
    job_id: JobId,
    story: Annotated[bool, typer.Option("--story", help="Tell how it came to its state, and what to do.")] = False,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Show a job, its attempts, and why it failed or waits."""
    from dask_fleet.cli.job_view import print_job, print_story
    from dask_fleet.cli.output import print_json
    from dask_fleet.client import Client

    with Client(url) as client:
        job = client.job(job_id)
        told = job.story() if story else {}
        attempts = [] if story else job.attempts()
    if story:
        print_json(told) if as_json else print_story(job.document, told)
    elif as_json:
        print_json({**job.document, "attempts": attempts})
    else:
        print_job(job.document, attempts)


@app.command()
def result(
    job_id: JobId,
    output: options.Output = None,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Wait for a job's result and print or save it."""
    from dask_fleet.cli import result_view
    from dask_fleet.cli.durations import duration
    from dask_fleet.client import Client

    timeout_s = None if timeout is None else duration("--timeout", timeout)
    with Client(url) as client:
        job = client.job(job_id)
        if output is not None:
            job.wait(timeout_s, progress=True)
            result_view.write_result(job, output)
        elif as_json:
            job.wait(timeout_s)
            sys.stdout.write(job.read("application/json").decode() + "\n")
        else:
            result_view.show_result(job, timeout=timeout_s)


@app.command()
def cancel(job_ids: JobIds, as_json: options.Json = False, url: options.Url = None) -> None:
    """Cancel jobs; running ones end soon after."""
    _each(job_ids, lambda job: job.cancel(), as_json=as_json, url=url)


@app.command()
def retry(job_ids: JobIds, as_json: options.Json = False, url: options.Url = None) -> None:
    """Run failed, cancelled or expired jobs again."""
    _each(job_ids, lambda job: job.retry(), as_json=as_json, url=url)


@app.command()
def watch(
    job_id: JobId,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    url: options.Url = None,
) -> None:
    """Print what happens to a job as it happens; exits with 1 unless it succeeds."""
    import dataclasses

    from dask_fleet.cli.job_view import event_text
    from dask_fleet.cli.output import print_json, stdout
    from dask_fleet.client import Client

    last = ""
    with Client(url) as client:
        for event in client.job(job_id).events():
            last = event.kind
            if as_json:
                print_json(dataclasses.asdict(event), indent=None)
            else:
                stdout().print(event_text(event), soft_wrap=True)
    if last != "succeeded":
        raise typer.Exit(1)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    stream: Annotated[
        str,
        typer.Option(help="stdout, stderr, log (Python's logging), or all.", autocompletion=lambda: [*_STREAMS]),
    ] = "all",
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of that attempt; else of the latest, and with --follow of all.")
    ] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="So many lines at the end of each stream.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="As it was written, with what may steer the terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    url: options.Url = None,
) -> None:
    """Print what a job wrote: its standard output and error, and its logging."""
    from dask_fleet.cli.log_view import LogPrinter
    from dask_fleet.cli.output import print_json
    from dask_fleet.client import Client

    if stream not in _STREAMS:
        raise BadRequest(f"--stream must be one of {', '.join(_STREAMS)}, not {stream!r}")
    if follow and tail is not None:
        raise BadRequest("--tail and --follow exclude each other")
    with Client(url) as client:
        job = client.job(job_id)
        if follow:
            printer = LogPrinter(raw=raw, headings=stream == "all")
            for piece in job.logs(follow=True, stream=stream, attempt=attempt):
                if as_json:
                    print_json({"attempt": piece.attempt, "stream": piece.stream, "text": piece.text}, indent=None)
                else:
                    printer.show(piece.attempt, piece.stream, piece.text)
        elif as_json:
            there = job.log_sizes()
            wanted = attempt if attempt is not None else max((each["attempt"] for each in there), default=0)
            for found in (each for each in there if each["attempt"] == wanted):
                for one in (each for each in found["streams"] if stream in {"all", each["stream"]}):
                    text = job.logs(stream=one["stream"], attempt=wanted, tail=tail)
                    print_json({"attempt": wanted, "stream": one["stream"], "text": text}, indent=None)
        else:
            LogPrinter(raw=raw, headings=False).write(job.logs(stream=stream, attempt=attempt, tail=tail))


def _each(job_ids: list[str], act: Callable[[Job], Any], *, as_json: bool, url: str | None) -> None:
    """Do something to each job; one that refuses does not keep it from the others."""
    from dask_fleet.cli.failures import report
    from dask_fleet.cli.output import print_json, status_text, stdout
    from dask_fleet.client import Client
    from dask_fleet.model.errors import ConnectionFailed, FleetError

    documents: list[dict[str, Any]] = []
    refused = 0
    with Client(url) as client:
        for job_id in job_ids:
            try:
                job = _done_to(client, job_id, act)
            except ConnectionFailed:
                raise
            except FleetError as error:
                report(error, as_json=as_json)
                refused += 1
                continue
            documents.append(job.document)
            if not as_json:
                stdout().print(job.job_id, status_text(job.status), highlight=False)
    if as_json:
        print_json(documents)
    if refused:
        raise typer.Exit(1)


def _done_to(client: Client, job_id: str, act: Callable[[Job], Any]) -> Job:
    job = client.job(job_id)
    act(job)
    return job


def moment(flag: str, text: str | None) -> datetime | None:
    """Return a time: a duration means so long ago, else RFC 3339.

    Raises
    ------
    BadRequest
        If it is neither, or has no zone.
    """
    from dask_fleet.config.durations import parse_duration

    if text is None:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None:
        raise BadRequest(f"{flag} must be a duration such as 2h or 7d, or a time such as 2026-01-31T12:00:00Z, not {text!r}")
    return time if time.tzinfo is not None else time.astimezone()  # people at a terminal mean their own clock
