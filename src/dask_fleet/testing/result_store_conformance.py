"""What every result store must do, sentence by sentence of :class:`dask_fleet.plugins.result_store.ResultStore`.

Use it as :mod:`dask_fleet.testing.ledger_conformance` is used: subclass, say how a store is made.
"""

# ruff: noqa: D102 - a scenario is told by its name

from __future__ import annotations

import asyncio
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dask_fleet.model.errors import ResultCorrupt
from dask_fleet.plugins.result_store import ResultStore

SCENARIO_TIMEOUT_S = 60.0
MIB = 1 << 20


def sha256(data: bytes) -> str:
    """Return the digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def scenario(test: Callable[[Any, ResultStore], Awaitable[None]]) -> Callable[[Any], None]:
    """Make a test of a coroutine that takes an open store."""

    def collected(self: ResultStoreConformance) -> None:
        async def act() -> None:
            store = self.make_store()
            await store.open()
            try:
                async with asyncio.timeout(SCENARIO_TIMEOUT_S):
                    await test(self, store)
            finally:
                await store.close()

        asyncio.run(act())

    collected.__name__ = test.__name__
    collected.__doc__ = test.__doc__
    collected.__qualname__ = test.__qualname__
    return collected


async def read(store: ResultStore, location: str, *, start: int = 0, stop: int | None = None) -> bytes:
    """Return all that `read` yields, in pieces as promised."""
    pieces = [piece async for piece in store.read(location, start=start, stop=stop)]
    assert all(0 < len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


class ResultStoreConformance(ABC):
    """Subclass it, set `spool` to the folder spool files are written into, and say how a store is made."""

    spool: Path

    @abstractmethod
    def make_store(self) -> ResultStore:
        """Return a store that is not open yet."""

    def spooled(self, name: str, data: bytes) -> Path:
        """Write a spool file."""
        self.spool.mkdir(parents=True, exist_ok=True)
        path = self.spool / name
        path.write_bytes(data)
        return path

    @scenario
    async def test_what_was_adopted_is_read(self, store: ResultStore) -> None:
        data = os.urandom(3 * MIB + 17)
        path = self.spooled("a", data)
        location = await store.adopt(path, digest=sha256(data), size=len(data))
        assert not path.exists()
        assert await store.size(location) == len(data)
        assert await read(store, location) == data
        assert await store.verify(location, digest=sha256(data))
        assert not await store.verify(location, digest=sha256(b"other"))

    @scenario
    async def test_a_stamp_stays_as_long_as_nothing_changes(self, store: ResultStore) -> None:
        location = await store.adopt(self.spooled("a", b"data"), digest=sha256(b"data"), size=4)
        stamp = await store.stamp(location)
        assert stamp is not None
        assert await read(store, location) == b"data"
        assert await store.stamp(location) == stamp
        await store.delete(location)
        assert await store.stamp(location) is None

    @scenario
    async def test_ranges(self, store: ResultStore) -> None:
        data = os.urandom(2 * MIB + 5)
        location = await store.adopt(self.spooled("a", data), digest=sha256(data), size=len(data))
        for start, stop in ((0, 1), (5, 5), (MIB - 1, MIB + 1), (MIB, None), (2 * MIB, 9 * MIB), (len(data), None)):
            assert await read(store, location, start=start, stop=stop) == data[start:stop]

    @scenario
    async def test_an_empty_result(self, store: ResultStore) -> None:
        location = await store.adopt(self.spooled("a", b""), digest=sha256(b""), size=0)
        assert await store.size(location) == 0
        assert await read(store, location) == b""

    @scenario
    async def test_a_wrong_size_or_digest_is_refused_and_the_spool_file_removed(self, store: ResultStore) -> None:
        for digest, size in ((sha256(b"other"), 4), (sha256(b"data"), 3), (sha256(b"dat"), 3)):
            path = self.spooled("a", b"data")
            with pytest.raises(ResultCorrupt):
                await store.adopt(path, digest=digest, size=size)
            assert not path.exists()

    @scenario
    async def test_adopting_again_after_a_crash_is_harmless(self, store: ResultStore) -> None:
        path = self.spooled("a", b"data")
        first = await store.adopt(path, digest=sha256(b"data"), size=4)
        assert await store.adopt(path, digest=sha256(b"data"), size=4) == first
        self.spooled("a", b"data")
        assert await store.adopt(path, digest=sha256(b"data"), size=4) == first
        assert not path.exists()
        assert await read(store, first) == b"data"

    @scenario
    async def test_nothing_anywhere_is_corrupt(self, store: ResultStore) -> None:
        with pytest.raises(ResultCorrupt):
            await store.adopt(self.spool / "a", digest=sha256(b"data"), size=4)

    @scenario
    async def test_equal_bytes_of_two_jobs_are_deleted_apart(self, store: ResultStore) -> None:
        one = await store.adopt(self.spooled("a", b"data"), digest=sha256(b"data"), size=4)
        two = await store.adopt(self.spooled("b", b"data"), digest=sha256(b"data"), size=4)
        await store.delete(one)
        assert await store.size(one) is None
        assert await read(store, two) == b"data"

    @scenario
    async def test_old_bytes_are_listed_in_pages_or_not_at_all(self, store: ResultStore) -> None:
        stored = {
            await store.adopt(self.spooled(f"s{n}", bytes([n])), digest=sha256(bytes([n])), size=1) for n in range(20)
        }

        async def listed(than_s: float) -> set[str]:
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                page, after = await store.older(than_s=than_s, after=after)
                found += page
            assert len(found) == len(set(found))
            return set(found)

        assert await listed(3600.0) == set()
        assert await listed(-1.0) in (stored, set())
        gone = stored.pop()
        await store.delete(gone)
        assert gone not in await listed(-1.0)

    @scenario
    async def test_what_is_not_there(self, store: ResultStore) -> None:
        location = await store.adopt(self.spooled("a", b"data"), digest=sha256(b"data"), size=4)
        await store.delete(location)
        await store.delete(location)
        assert await store.size(location) is None
        assert not await store.verify(location, digest=sha256(b"data"))
        with pytest.raises(FileNotFoundError):
            await read(store, location)
        assert await store.size("../../etc/passwd") is None
        with pytest.raises(FileNotFoundError):
            await read(store, "../../etc/passwd")
        await store.delete("../../etc/passwd")

    @scenario
    async def test_a_reader_that_stops_early_leaves_nothing_open(self, store: ResultStore) -> None:
        data = bytes(3 * MIB)
        location = await store.adopt(self.spooled("a", data), digest=sha256(data), size=len(data))
        reading: Any = store.read(location)
        assert 0 < len(await anext(reading)) <= MIB
        await reading.aclose()
        await store.delete(location)
        assert await store.size(location) is None

    @scenario
    async def test_it_closes_twice_and_opens_again(self, store: ResultStore) -> None:
        location = await store.adopt(self.spooled("a", b"data"), digest=sha256(b"data"), size=4)
        await store.close()
        await store.close()
        await store.open()
        assert await read(store, location) == b"data"
