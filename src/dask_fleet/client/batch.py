"""Thousands of calls in few requests: the client's side of ``POST …/{endpoint}:batch``."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from dask_fleet.client.async_job import AsyncJob
from dask_fleet.client.catalogue import EndpointInfo
from dask_fleet.client.fan_out import bounded_map
from dask_fleet.client.options import CallOptions, encode_params
from dask_fleet.client.problems import error_from
from dask_fleet.client.transport import Transport
from dask_fleet.model.errors import ConnectionFailed, FleetError

SETS_A_REQUEST = 1_000
"""Few enough that an answer comes in a moment, many enough that the requests themselves cost nothing."""
BYTES_A_REQUEST = 8 << 20
"""From here on a request is full; the server takes 16 MiB."""
REQUESTS_AT_ONCE = 2
"""One is on its way while another is accepted; the server takes their transactions one after the other."""

Answer = AsyncJob | FleetError


class _Part:
    """The sets of one request."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        """Index of its first set in the whole."""
        self.sets: list[Mapping[str, Any]] = []
        self.lines: list[bytes] = []
        self.size = 0

    def add(self, params: Mapping[str, Any]) -> None:
        line = encode_params(params)
        self.sets.append(params)
        self.lines.append(line)
        self.size += len(line) + 1

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= SETS_A_REQUEST or self.size >= BYTES_A_REQUEST


def _parts(sets: Iterable[Mapping[str, Any]]) -> Iterator[_Part]:
    """Yield the sets in parts; the same sets always give the same parts, so that keys stand for the same."""
    part = _Part(0)
    for count, params in enumerate(sets, 1):
        part.add(params)
        if part.is_full:
            yield part
            part = _Part(count)
    if part.lines:
        yield part


async def submit_sets(
    transport: Transport,
    info: EndpointInfo,
    sets: Iterable[Mapping[str, Any]],
    options: CallOptions,
    *,
    raise_refusals: bool,
) -> list[Answer]:
    """Submit a call for each of `sets` and return, in their order, the job of each or why it was refused.

    Those that find no room are sent again for as long as some of them are taken, or the transport's patience lasts.
    """
    if options.idempotency_key is None and (not info.pure or options.refresh):
        # A request may be repeated after a broken connection: that must not open a second job or run.
        options = options.changed(idempotency_key=str(uuid.uuid4()))

    async def send(part: _Part) -> list[Answer]:
        return await _send(transport, info, part, options, raise_refusals=raise_refusals)

    return [answer for part in await bounded_map(send, _parts(sets), limit=REQUESTS_AT_ONCE) for answer in part]


async def _send(
    transport: Transport, info: EndpointInfo, part: _Part, options: CallOptions, *, raise_refusals: bool
) -> list[Answer]:
    keyed = options.idempotency_key is not None
    if keyed:
        options = options.changed(idempotency_key=f"{options.idempotency_key}.{part.begin}")
    answers: dict[int, Answer] = {}
    asked = list(range(len(part.lines)))
    waiting = len(asked)
    attempt, since = 0, time.monotonic()
    while True:
        response = await transport.request(
            "POST",
            f"/v1/{quote(info.service, safe='')}/{quote(info.name, safe='')}:batch",
            query={"refresh": "true"} if options.refresh else None,
            headers={"Content-Type": "application/x-ndjson", **options.headers()},
            content=b"\n".join([part.lines[place] for place in asked]),
        )
        items = response.json().get("items")
        if not isinstance(items, list) or len(items) != len(asked):
            raise ConnectionFailed(f"{transport.url} does not answer batches like a Dask Fleet server; check FLEET_URL")
        later: list[int] = []
        postponed: FleetError | None = None
        for place, item in zip(asked, items, strict=True):
            answer = _answer(transport, info, part.sets[place], item, response.headers)
            answers[place] = answer
            if isinstance(answer, FleetError):
                if answer.retryable:
                    later.append(place)
                    postponed = answer
                elif raise_refusals:
                    raise answer
        if postponed is None:
            break
        if len(later) < waiting:
            attempt, since = 0, time.monotonic()  # some were taken: it goes on
        waiting = len(later)
        attempt += 1
        delay = transport.retry_delay(attempt, elapsed_s=time.monotonic() - since, error=postponed)
        if delay is None:
            if raise_refusals:
                raise postponed
            break
        await asyncio.sleep(delay)
        if not keyed:
            # A key stands for its place in the request, so such a request is repeated as it was. Without one only the rest
            # is sent: what has been taken may have failed meanwhile, and asked for again it would be run again.
            asked = later
    return [answers[place] for place in range(len(part.lines))]


def _answer(
    transport: Transport, info: EndpointInfo, params: Mapping[str, Any], item: dict[str, Any], headers: Mapping[str, str]
) -> Answer:
    problem = item.get("error")
    if problem is not None:
        return error_from(int(problem.get("status", 500)), headers, json.dumps(problem).encode())
    known = {"service": info.service, "endpoint": info.name, "params": dict(params)}
    return AsyncJob(transport, {"job_id": item["job_id"], "status": item["status"], **known})
