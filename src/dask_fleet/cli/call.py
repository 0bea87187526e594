"""``dask-fleet call``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dask_fleet.cli import completions, options
from dask_fleet.model.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from dask_fleet.client import Client
    from dask_fleet.client.catalogue import EndpointInfo


def call(
    endpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="SERVICE.ENDPOINT", help="What to call; without it, what there is.", autocompletion=completions.endpoints
        ),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Parameters. NAME:=JSON says it exactly.",
            autocompletion=completions.parameters,
            show_default=False,
        ),
    ] = None,
    json_params: Annotated[
        str | None,
        typer.Option("--json-params", metavar="JSON", help="All parameters as JSON, @FILE or - (standard input)."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.ndjson",
            help="A call for each line, a JSON object of parameters; - is standard input. Other parameters are shared.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result, or print the job and leave.")] = True,
    output: options.Output = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Compute again even if a result is there.")] = False,
    priority: Annotated[int | None, typer.Option(help="-100 to 100, higher first.", show_default="0")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find the job by; may be given again.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="DURATION|TIME", help="The job expires if it has not started by then.")
    ] = None,
    timeout: options.Timeout = None,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Call an endpoint and print its result. Equal calls are one job: the second is answered at once.

    Example: dask-fleet call flights.delay_by_carrier month=1 origin=JFK

    Thousands: dask-fleet call flights.delay_by_carrier --batch months.ndjson --output results.ndjson
    """
    from dask_fleet.cli import result_view
    from dask_fleet.cli.durations import duration
    from dask_fleet.cli.output import print_json
    from dask_fleet.client import Client
    from dask_fleet.config.durations import parse_duration

    timeout_s = None if timeout is None else duration("--timeout", timeout)
    with Client(url) as client:
        if endpoint is None:
            _list_endpoints(client, as_json=as_json)
            return
        info = find_endpoint(client, endpoint)
        try:
            held = parse_duration(deadline) if deadline is not None else None
        except ValueError:
            held = None  # no duration, so a time: the server reads it
        body = {**_json_object(json_params), **_assigned(params, info)}
        if batch is not None:
            from dask_fleet.cli.batch import BatchCall, read_sets
            from dask_fleet.client.options import CallOptions

            given = CallOptions().changed(
                priority=priority, tags=tag or (), refresh=refresh, deadline=deadline if held is None else held
            )
            many = BatchCall(
                endpoint=f"{info.service}.{info.name}",
                common=body,
                call_options=given,
                wait=wait,
                timeout_s=timeout_s,
                target=output,
                as_json=as_json,
            )
            try:
                many.run(url, read_sets(batch))
            except ValueError as exc:
                raise BadRequest(str(exc)) from None
            return
        try:
            # Without waiting: from here on an interrupted caller can be told how to find the job.
            job = client.submit(
                info.service,
                info.name,
                body,
                priority=priority,
                deadline=deadline if held is None else held,
                tags=tag or (),
                refresh=refresh,
            )
        except ValueError as exc:
            raise BadRequest(str(exc)) from None
        except KeyboardInterrupt:
            sys.stderr.write("\nThe server had not answered yet. Whether it has the job: dask-fleet jobs list\n")
            raise
        if not wait:
            if as_json:
                print_json(job.document)
            else:
                sys.stdout.write(f"{job.job_id}\n")
            return
        try:
            if output is not None:
                job.wait(timeout_s, progress=True)
                result_view.write_result(job, output)
            elif as_json:
                job.wait(timeout_s)
                print_json(result_view.document_with_result(job))
                if job.status != "succeeded":
                    raise typer.Exit(1)
            else:
                result_view.show_result(job, timeout=timeout_s)
        except KeyboardInterrupt:
            sys.stderr.write(f"\nThe job goes on. Get its result with: dask-fleet jobs result {job.job_id}\n")
            raise


def find_endpoint(client: Client, name: str) -> EndpointInfo:
    """Return an endpoint of the server.

    Raises
    ------
    NotFound
        If there is none; the message lists what there is.
    """
    service, dot, endpoint = name.partition(".")
    if not dot or not endpoint:
        names = client.services().names()
        raise BadRequest(f"an endpoint is named SERVICE.ENDPOINT, not {name!r}. There is: {', '.join(names) or 'nothing'}")
    try:
        return client.services().service(service).endpoint(endpoint)
    except AttributeError as exc:
        raise NotFound(str(exc)) from None


def _list_endpoints(client: Client, *, as_json: bool) -> None:
    from dask_fleet.cli.output import print_json, print_table

    catalogue = client.services()
    found = [info for service in catalogue.services.values() for info in service.endpoints.values()]
    if as_json:
        print_json(
            [
                {
                    "endpoint": f"{info.service}.{info.name}",
                    "doc": info.doc,
                    "parameters": info.parameters,
                    "returns": info.returns,
                }
                for info in found
            ]
        )
        return
    caption = None if found else "This server serves no functions: `dask-fleet serve FILE` does. It has Dask clusters."
    print_table(
        ("endpoint", "call", "what it does"),
        [(f"{info.service}.{info.name}", f"{info.name}{info.signature()}", info.doc.partition("\n")[0]) for info in found],
        caption=caption,
    )


def _assigned(words: list[str] | None, info: EndpointInfo) -> dict[str, Any]:
    from dask_fleet.cli.coercion import parse_assignments

    return parse_assignments(words or (), info.parameters)


def _json_object(text: str | None) -> dict[str, Any]:
    """Return the object that ``--json-params`` gives: itself, a file's or standard input's."""
    if text is None:
        return {}
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise BadRequest(f"--json-params names {text[1:]}, which cannot be read: {exc}") from exc
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise BadRequest(f"--json-params is not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise BadRequest('--json-params must be an object, such as {"month": 1}')
    return value

