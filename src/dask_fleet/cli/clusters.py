"""``dask-fleet clusters``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dask_fleet.cli import completions, options
from dask_fleet.model.clusters import ClusterAccess
from dask_fleet.model.errors import BadRequest, ClusterFailed, FleetError, NotFound, WaitTimeout

if TYPE_CHECKING:
    from dask_fleet.client import Client

app = typer.Typer(help="Take, list, scale and close Dask clusters.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Or its id.", autocompletion=completions.cluster_names)]
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Or ids.", autocompletion=completions.cluster_names)]
_STEP_S = 5
_ON_ITS_WAY = frozenset({"pending", "starting"})


@app.command("list")
def list_clusters(
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    spares: Annotated[bool, typer.Option("--spares", help="Those kept ready for who asks next, too.")] = False,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """List clusters, newest first."""
    from dask_fleet.cli.job_view import ago
    from dask_fleet.cli.output import print_json, print_table, status_text
    from dask_fleet.client import Client

    with Client(url) as client:
        found = client.list_clusters(ended=every, spares=spares)
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    rows = [
        (
            document["name"],
            status_text(document["status"]),
            f"{document['workers']} of {document['n_workers']}",
            document["threads_per_worker"],
            document["user"],
            ago(document["created_at"], now),
            document["waiting_for"] or document["reason"] or "",
        )
        for document in found
    ]
    caption = None if rows else "No cluster runs. Take one with `dask-fleet clusters create`, or FleetCluster in Python."
    print_table(("name", "status", "workers", "threads", "user", "created", "waits for"), rows, caption=caption)


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="To find it by; made up if not given.")] = None,
    n_workers: Annotated[int, typer.Option("--n-workers", "-n", min=0, help="Dask workers.")] = 1,
    threads_per_worker: Annotated[int | None, typer.Option(min=1, help="Threads of each.", show_default="1")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each, such as 4GiB.", show_default="the pool's")
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Dask resource of each worker; may be repeated.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Where its workers run.", show_default="default")] = None,
    idle_timeout: Annotated[str, typer.Option(metavar="DURATION|never", help="Close it when idle for so long.")] = "20m",
    max_lifetime: Annotated[str, typer.Option(metavar="DURATION|never", help="Close it after this.")] = "never",
    preload: Annotated[list[str] | None, typer.Option(metavar="MODULE", help="Workers import it first.")] = None,
    access: Annotated[
        ClusterAccess | None, typer.Option(help="Who may use, scale and close it.", show_default="user")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Workers in processes that the tenant's jobs use, too.")] = False,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Variable of each worker; may be repeated.")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Dask's configuration; may be repeated.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Give it back if it does not run by then.")
    ] = None,
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Take a cluster that lives on until it is closed or idle; use it by `FleetCluster.from_name(NAME)`."""
    from dask_fleet.cli.durations import duration
    from dask_fleet.cli.output import print_json, stderr
    from dask_fleet.client import Client

    timeout_s = None if timeout is None else duration("--timeout", timeout)
    asked: dict[str, Any] = {
        "name": name,
        "threads_per_worker": threads_per_worker,
        "memory_limit": memory_limit,
        "resources": {key: _number("--resource", key, value) for key, value in _pairs("--resource", resource)} or None,
        "pool": pool,
        "idle_timeout": None if idle_timeout == "never" else duration("--idle-timeout", idle_timeout),
        "max_lifetime": None if max_lifetime == "never" else duration("--max-lifetime", max_lifetime),
        "preload": preload or (),
        "env": dict(_pairs("--env", env)) or None,
        "access": None if access is None else access.value,
        "shared": shared,
        "config": {key: _plain(value) for key, value in _pairs("--set", config)} or None,
    }
    with Client(url) as client:
        try:
            document = client.create_cluster(n_workers, wait=1, **asked)
        except ValueError as exc:
            raise BadRequest(str(exc)) from exc
        document = _brought_up(client, document, timeout_s)
    if as_json:
        print_json({key: value for key, value in document.items() if key != "versions"})
        return
    stderr().print(
        f"cluster {document['name']} runs at {document['address']} with {document['workers']} of {document['n_workers']} "
        f"workers. Close it with `dask-fleet clusters close {document['name']}`.",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    typer.echo(document["name"])


@app.command()
def show(name: Name, as_json: options.Json = False, url: options.Url = None) -> None:
    """Show a cluster: how it stands, what it waits for, and what has happened to it."""
    from dask_fleet.cli.output import print_fields, print_json, print_table, status_text
    from dask_fleet.client import Client

    with Client(url) as client:
        document = client.cluster(name)
        events = client.cluster_events(document["cluster_id"])
    if as_json:
        print_json({**document, "events": events})
        return
    shown = ("cluster_id", "user", "access", "pool", "address", "dashboard", "agent", "epoch", "tasks", "clients",
             "created_at", "closed_at", "waiting_for", "reason")  # fmt: skip
    print_fields(
        [
            ("name", document["name"]),
            ("status", status_text(document["status"])),
            ("workers", f"{document['workers']} of {document['n_workers']}, {document['threads_per_worker']} threads each"),
            *((field.replace("_", " "), document[field]) for field in shown),
        ]
    )
    print_table(("at", "scheduler", "event", ""), [_event_row(event) for event in events])


@app.command()
def scale(
    name: Name,
    n_workers: Annotated[int, typer.Argument(min=0, metavar="N", help="Dask workers.")],
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Change how many workers a cluster has; data of those that leave is moved first."""
    from dask_fleet.cli.output import print_json
    from dask_fleet.client import Client

    with Client(url) as client:
        document = client.scale_cluster(name, n_workers)
    if as_json:
        print_json(document)
        return
    waits = f"; it waits for {document['waiting_for']}" if document["waiting_for"] else ""
    typer.echo(f"{document['name']} has {document['workers']} of {document['n_workers']} workers{waits}")


@app.command()
def close(names: Names, as_json: options.Json = False, url: options.Url = None) -> None:
    """Close clusters; what they hold in memory is gone."""
    from dask_fleet.cli.output import print_json, status_text, stdout
    from dask_fleet.client import Client

    with Client(url) as client:
        closed = [client.close_cluster(name, wait=_STEP_S) for name in names]
    if as_json:
        print_json(closed)
        return
    for document in closed:
        stdout().print(document["name"], status_text(document["status"]), highlight=False)


@app.command()
def logs(
    name: Name,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="How long to wait for its scheduler and workers.")
    ] = "10s",
    as_json: options.Json = False,
    url: options.Url = None,
) -> None:
    """Print what a cluster's scheduler and workers have logged, and what has happened to it.

    Of one that does not run, or does not answer, the latter is printed, and the exit code is 1.
    """
    from dask_fleet.cli.durations import duration
    from dask_fleet.cli.output import print_json, printable

    found, failure = _logs(name, duration("--timeout", timeout), url)
    if as_json:
        print_json(found)
    else:
        for place, text in found.items():
            sys.stdout.write(f"--- {printable(place)}\n{printable(text)}\n")
    if failure is not None:
        raise failure


def _logs(name: str, timeout_s: float, url: str | None) -> tuple[dict[str, str], FleetError | None]:
    """Return logs by place, and why they are not all."""
    import time

    from dask_fleet.client import Client, FleetCluster
    from dask_fleet.client.cluster_shown import NO_ANSWER

    deadline = time.monotonic() + timeout_s
    with Client(url) as client:
        document = _known(client, name)
        cluster_id = document["cluster_id"]
        try:
            if document["status"] != "running" and document["status"] not in _ON_ITS_WAY:
                raise ClusterFailed(_why_none(document))
            with FleetCluster.from_name(cluster_id, url=url, quiet=True, timeout=timeout_s) as cluster:
                left_s = max(0.5, deadline - time.monotonic())
                found = {str(place): str(text) for place, text in cluster.get_logs(timeout=left_s).items()}
        except (ClusterFailed, WaitTimeout):
            document = client.cluster(cluster_id)
            story = "\n".join(" ".join(map(str, _event_row(event))).rstrip() for event in client.cluster_events(cluster_id))
            cls = WaitTimeout if document["status"] in _ON_ITS_WAY else ClusterFailed
            return {"Cluster": story}, cls(_why_none(document))
    return found, ClusterFailed(_why_none(document)) if found["Scheduler"] == NO_ANSWER else None


def _known(client: Client, name: str) -> dict[str, Any]:
    """Return the document of a cluster, of an ended one as well: the newest of that name."""
    try:
        return client.cluster(name)
    except NotFound:
        ended = next((each for each in client.list_clusters(ended=True) if each["name"] == name), None)
        if ended is None:
            raise
        return ended


def _why_none(document: Mapping[str, Any]) -> str:
    name, status = document["name"], document["status"]
    if status == "running":
        return (
            f"the scheduler of cluster {name} does not answer, so there are no logs of it and the workers. Try again in a "
            "moment; a scheduler that is lost is replaced."
        )
    if status in _ON_ITS_WAY:
        waiting_for = document["waiting_for"] or "its scheduler"
        return (
            f"cluster {name} is {status} and waits for {waiting_for}, so there are no logs of scheduler and workers. "
            "Try again when it runs, or wait for longer with --timeout."
        )
    return (
        f"cluster {name} is {status} ({document['reason'] or 'no reason is known'}), and the logs of scheduler and workers "
        "ended with it. Take another one with `dask-fleet clusters create`."
    )


def _brought_up(client: Client, document: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
    """Wait until a cluster runs, telling what it waits for; broken off, it is given back."""
    import time

    from dask_fleet.cli.output import printable, stderr

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    told = ""
    try:
        while document["status"] in _ON_ITS_WAY:
            waiting_for = document["waiting_for"] or "its scheduler"
            if waiting_for != told:
                told = waiting_for
                stderr().print(f"waits for {printable(waiting_for)}", highlight=False, markup=False)
            left_s = _STEP_S if deadline is None else min(_STEP_S, deadline - time.monotonic())
            if left_s <= 0:
                raise WaitTimeout(f"the cluster did not run in time and is given back; it waited for {waiting_for}")
            document = client.cluster(document["cluster_id"], wait=max(1.0, left_s))
    except BaseException:
        client.close_cluster(document["cluster_id"])
        raise
    if document["status"] != "running":
        raise ClusterFailed(f"the cluster is {document['status']}: {document['reason']}")
    return document


def _pairs(flag: str, given: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise BadRequest(f"{flag} takes NAME=VALUE, not {text!r}")
        pairs.append((key, value))
    return pairs


def _number(flag: str, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"{flag} {key} must be a number, not {text!r}") from None


def _plain(text: str) -> Any:
    """Return a value of Dask's configuration: what JSON makes of the text, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _event_row(event: Mapping[str, Any]) -> tuple[str, int, str, str]:
    told = ", ".join(f"{key} {value}" for key, value in event["data"].items() if value not in (None, ""))
    return event["at"], event["epoch"], event["kind"], told
