"""``PUT /v1/agents/spool/{name}``: large results of agents that do not share the data folder.

The bytes are on the disk when this answers; the attempt's outcome then names the file, and only what has the announced
digest becomes a result.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import BadRequest, BodyTooLarge, NotFound, SpoolFull, UnsupportedMediaType
from dask_fleet.server.auth import Scope, principal_of, require
from dask_fleet.server.body import BY_RATE, ClientDisconnectedError
from dask_fleet.server.methods import Methods
from dask_fleet.server.query import query_of

PATIENCE_S = 30.0
"""Longest silence, and what slow networks may fall behind the least rate."""
MIN_BYTES_PER_S = 64 << 10
_WRITE_BYTES = 1 << 20
"""Gathered before a thread writes them: so much memory an upload costs."""
_NAME = re.compile(r"[0-9a-f]{32}\Z")
_NUMBER = re.compile(r"[0-9]{1,18}\Z")
DRAFT_SUFFIX = ".part"


def routes(controller: Controller, *, spool: Path) -> list[BaseRoute]:
    """Return the route. `spool` is the server's spool folder."""
    return [Route("/v1/agents/spool/{name}", Methods(PUT=_Spool(controller, spool).put))]


def clear_drafts(spool: Path) -> None:
    """Remove what uploads that a killed server took in have left. Blocks; for the start."""
    for path in spool.glob(f".*{DRAFT_SUFFIX}"):
        path.unlink(missing_ok=True)


class _Spool:
    def __init__(self, controller: Controller, spool: Path) -> None:
        self._controller = controller
        self._spool = spool

    async def put(self, request: Request) -> Response:
        require(principal_of(request), Scope.AGENT)
        request.scope[BY_RATE] = True  # `_take` holds it to a rate of its own
        name = request.path_params["name"]
        if not _NAME.match(name):
            raise NotFound("a spool file's name is 32 hexadecimal digits")
        query = query_of(request, ("seq", "attempt"))
        seq, attempt = (_number(query, key) for key in ("seq", "attempt"))
        size = _content_length(request)
        limit = self._controller.result_limit(seq, attempt)
        if size > limit:
            raise BodyTooLarge(f"the result is larger than the {limit} bytes its endpoint allows", limit=limit)
        draft = self._spool / f".{name}.{secrets.token_hex(4)}{DRAFT_SUFFIX}"
        try:
            file = await asyncio.to_thread(_create, draft)
            try:
                await _take(request, file, size)
                await asyncio.to_thread(_keep, file, draft, self._spool / name)
            except BaseException:
                # In this very turn: whoever cancelled us may not give us another.
                file.close()
                draft.unlink(missing_ok=True)
                raise
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise SpoolFull("there is no room for the result; it may be sent again", retry_after_s=10) from exc
            raise
        return Response(status_code=204)


async def _take(request: Request, file: BinaryIO, size: int) -> None:
    """Write a request's body to a file, in threads."""
    pieces: list[bytes] = []
    gathered = received = 0
    started = time.monotonic()
    stream = request.stream()
    while True:
        piece = await _next(stream)
        if piece is None:
            break
        received += len(piece)
        if received > size:
            raise BodyTooLarge(f"more than the announced {size} bytes came", limit=size)
        if time.monotonic() - started > PATIENCE_S + received / MIN_BYTES_PER_S:
            raise BadRequest(f"the upload is slower than {MIN_BYTES_PER_S} bytes a second", retry_after_s=1)
        pieces.append(piece)
        gathered += len(piece)
        if gathered >= _WRITE_BYTES:
            await asyncio.to_thread(file.writelines, pieces)
            pieces, gathered = [], 0
    if received != size:
        raise BadRequest(f"{received} of {size} bytes came", retry_after_s=1)
    await asyncio.to_thread(file.writelines, pieces)


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await anext(stream, None)
    except TimeoutError:
        raise BadRequest(f"nothing came for {PATIENCE_S:g} s", retry_after_s=1) from None
    except ClientDisconnect:
        raise ClientDisconnectedError from None


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0)


def _keep(file: BinaryIO, draft: Path, target: Path) -> None:
    """Make the bytes durable under their name. An earlier upload of the same is replaced."""
    os.fsync(file.fileno())
    file.close()
    draft.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _number(query: dict[str, str], key: str) -> int:
    text = query.get(key, "")
    if not _NUMBER.match(text):
        raise BadRequest(f"the query parameter {key} must be a whole number")
    return int(text)


def _content_length(request: Request) -> int:
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the result unencoded")
    text = request.headers.get("content-length", "")
    if not _NUMBER.match(text):
        raise BadRequest("the header Content-Length must say how large the result is")
    return int(text)
