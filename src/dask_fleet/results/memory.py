"""The result store in a dictionary: for tests."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from dask_fleet.model.errors import ResultCorrupt
from dask_fleet.plugins.result_store import ResultStore

PIECE_BYTES = 1 << 20


class MemoryResultStore(ResultStore):
    """Keeps bytes as long as the process."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytes] = {}
        self._since: dict[str, float] = {}

    async def open(self) -> None:
        """Nothing to make ready."""

    async def close(self) -> None:
        """Nothing is held."""

    async def adopt(self, spool: Path, *, digest: str, size: int) -> str:
        """See the port."""
        location = f"{digest}/{spool.name}"
        if location in self._bytes:
            await asyncio.to_thread(spool.unlink, missing_ok=True)
            return location
        try:
            data = await asyncio.to_thread(spool.read_bytes)
        except FileNotFoundError:
            raise ResultCorrupt("the result's bytes are nowhere: neither spooled nor stored") from None
        await asyncio.to_thread(spool.unlink)
        if (len(data), hashlib.sha256(data).hexdigest()) != (size, digest):
            raise ResultCorrupt("the spooled result does not have the size and digest that were announced")
        self._bytes[location] = data
        self._since[location] = time.monotonic()
        return location

    async def size(self, location: str) -> int | None:
        """See the port."""
        data = self._bytes.get(location)
        return None if data is None else len(data)

    async def read(self, location: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """See the port."""
        try:
            data = self._bytes[location]
        except KeyError:
            raise FileNotFoundError(location) from None
        end = len(data) if stop is None else min(stop, len(data))
        for begin in range(start, end, PIECE_BYTES):
            yield data[begin : min(begin + PIECE_BYTES, end)]

    async def verify(self, location: str, *, digest: str) -> bool:
        """See the port."""
        data = self._bytes.get(location)
        return data is not None and hashlib.sha256(data).hexdigest() == digest

    async def delete(self, location: str) -> None:
        """See the port."""
        self._bytes.pop(location, None)
        self._since.pop(location, None)

    async def older(self, *, than_s: float, after: str = "") -> tuple[list[str], str | None]:
        """See the port."""
        before = time.monotonic() - than_s
        return [location for location, since in sorted(self._since.items()) if location > after and since < before], None
