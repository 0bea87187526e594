"""``dask-fleet call SERVICE.ENDPOINT --batch FILE``: one call for each line of a file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dask_fleet.cli.output import print_json, print_table, stderr
from dask_fleet.model.errors import BadRequest, FleetError, WaitTimeout

if TYPE_CHECKING:
    from dask_fleet.client.async_job import AsyncJob
    from dask_fleet.client.options import CallOptions

MAX_SHOWN = 20
"""Most failures that are shown; the rest is counted."""


class BatchCall:
    """What was asked for on the command line.

    Parameters
    ----------
    endpoint, common
        What is called, and the parameters that all calls share.
    call_options
        What stands beside the parameters.
    wait, timeout_s, target, as_json
        Whether and how long to wait, where the results are to be written, and whether a program reads the answer.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        common: Mapping[str, Any],
        call_options: CallOptions,
        wait: bool,
        timeout_s: float | None,
        target: str | None,
        as_json: bool,
    ) -> None:
        self._endpoint = endpoint
        self._common = common
        self._call_options = call_options
        self._wait = wait
        self._timeout_s = timeout_s
        self._target = target
        self._as_json = as_json

    def run(self, url: str | None, sets: list[dict[str, Any]]) -> None:
        """Submit all sets, wait for them if asked to, and tell what became of them.

        Raises
        ------
        typer.Exit
            With 1, if some were refused or have no result.
        WaitTimeout
            If some have not ended in time; they go on.
        """
        entries = asyncio.run(self._call(url, sets))
        if self._target is not None:
            _write(entries, self._target)
        if self._as_json:
            print_json(entries)
        elif not self._wait:
            sys.stdout.write("".join(f"{entry['job_id']}\n" for entry in entries if "job_id" in entry))
        failed = [entry for entry in entries if "error" in entry or entry["status"] in {"cancelled", "expired"}]
        if not self._as_json:
            self._tell(entries, failed)
        if failed:
            raise typer.Exit(1)

    async def _call(self, url: str | None, sets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from dask_fleet.client.async_client import AsyncClient
        from dask_fleet.client.async_job import AsyncJob

        async with AsyncClient(url) as client:
            service, _, name = self._endpoint.partition(".")
            info = await client.endpoint_info(service, name)
            answers = await client.batch_calls(info, sets, self._common, self._call_options)
            jobs = [answer for answer in answers if isinstance(answer, AsyncJob)]
            if self._wait:
                await self._wait_for(jobs)
            return [await self._entry(index, answer) for index, answer in enumerate(answers)]

    async def _wait_for(self, jobs: list[AsyncJob]) -> None:
        from dask_fleet.client.bars import open_bar
        from dask_fleet.client.completion import as_completed

        done = 0
        try:
            with open_bar(self._endpoint) as bar:
                bar.update(0, len(jobs))
                async with asyncio.timeout(self._timeout_s):
                    async for _ in as_completed(jobs):
                        done += 1
                        bar.update(done, len(jobs))
        except TimeoutError:
            raise WaitTimeout(f"{len(jobs) - done:,} of {len(jobs):,} jobs have not ended yet; they go on") from None
        except asyncio.CancelledError:
            sys.stderr.write("\nThe jobs go on. See them with: dask-fleet jobs list\n")
            raise

    async def _entry(self, index: int, answer: AsyncJob | FleetError) -> dict[str, Any]:
        if isinstance(answer, FleetError):
            error = {"code": answer.code, "message": answer.detail, **answer.extra}
            return {"index": index, "status": "refused", "error": error}
        entry: dict[str, Any] = {"index": index, "job_id": answer.job_id, "status": str(answer.status)}
        if self._wait:
            document = answer.document
            if document.get("error") is not None:
                entry["error"] = document["error"]
            if answer.status == "succeeded" and (self._as_json or self._target is not None):
                entry["result"] = await _result(answer)
        return entry

    def _tell(self, entries: list[dict[str, Any]], failed: list[dict[str, Any]]) -> None:
        counts: dict[str, int] = {}
        for entry in entries:
            counts[entry["status"]] = counts.get(entry["status"], 0) + 1
        told = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items())) or "no parameter sets"
        stderr().print(told, markup=False, highlight=False)
        if failed:
            rows = [(entry["index"], entry["status"], entry.get("job_id", ""), _why(entry)) for entry in failed[:MAX_SHOWN]]
            more = len(failed) - len(rows)
            caption = f"and {more:,} more; all with --json" if more else None
            print_table(("set", "status", "job", "why"), rows, caption=caption)


def read_sets(path: str) -> list[dict[str, Any]]:
    """Return the parameter sets of a file with one JSON object a line, or a JSON array of objects; ``-`` is standard input.

    Raises
    ------
    BadRequest
        If it cannot be read, naming the line.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadRequest(f"--batch names {path}, which cannot be read: {exc}") from exc
    found: list[Any] = []
    places: list[str] = []
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as exc:
            raise BadRequest(f"{path} is not JSON: {exc}") from None
        places = [f"element {number}" for number in range(1, len(found) + 1)]
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    found.append(json.loads(line))
                except ValueError as exc:
                    raise BadRequest(f"line {number} of {path} is not JSON: {exc}") from None
                places.append(f"line {number}")
    for place, value in zip(places, found, strict=True):
        if not isinstance(value, dict):
            raise BadRequest(f'{place} of {path} must be an object, such as {{"month": 1}}')
    return found


async def _result(job: AsyncJob) -> Any:
    from dask_fleet.model.errors import NotAcceptable

    if job.document.get("result") is not None:
        return job.document["result"]
    try:
        return json.loads(await job.read("application/json"))
    except NotAcceptable:
        return None  # bytes and pictures: `jobs result` fetches them


def _write(entries: list[dict[str, Any]], target: str) -> None:
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    if target == "-":
        sys.stdout.write(lines)
    else:
        Path(target).write_text(lines, encoding="utf-8")


def _why(entry: dict[str, Any]) -> str:
    error = entry.get("error") or {}
    kind = error.get("type") or error.get("code") or error.get("cause") or ""
    return f"{kind}: {error.get('message', '')}".strip(": ").partition("\n")[0]
