"""When stored results are compared with their digests."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from dask_fleet.model.errors import ResultCorrupt
from dask_fleet.results.files import FileResultStore
from dask_fleet.server.verified import ALWAYS_BYTES, SOUND_S, Verified


class Counting(FileResultStore):
    """Counts the comparisons."""

    compared = 0

    async def verify(self, location: str, *, digest: str) -> bool:
        self.compared += 1
        return await super().verify(location, digest=digest)


def play(tmp_path: Path, size: int) -> list[int]:
    """Read often, later, after a touch, after damage; returns how often there was a comparison by then."""
    now = 0.0
    counts: list[int] = []

    async def main() -> None:
        nonlocal now
        store = Counting(tmp_path / "results", tmp_path / "spool")
        await store.open()
        data = bytes(size)
        digest = hashlib.sha256(data).hexdigest()
        (tmp_path / "spool" / "a").write_bytes(data)
        location = await store.adopt(tmp_path / "spool" / "a", digest=digest, size=size)
        verified = Verified(store, now=lambda: now)

        async def check() -> None:
            try:
                await verified.check(location, digest=digest, size=size)
            finally:
                counts.append(store.compared)

        await check()
        await check()
        await check()
        now += SOUND_S
        await check()
        (tmp_path / "results" / location).touch()
        await check()
        await check()
        with (tmp_path / "results" / location).open("r+b") as file:
            file.write(b"x")
        for _ in range(2):
            with pytest.raises(ResultCorrupt, match="digest"):
                await check()
        await store.delete(location)
        with pytest.raises(ResultCorrupt, match="missing"):
            await check()

    asyncio.run(main())
    return counts


def test_a_small_one_always(tmp_path: Path) -> None:
    assert play(tmp_path, ALWAYS_BYTES)[1:] == [2, 3, 4, 5, 6, 7, 8, 8]


def test_a_large_one_once_an_hour_and_when_its_file_has_changed(tmp_path: Path) -> None:
    assert play(tmp_path, ALWAYS_BYTES + 1) == [1, 1, 1, 2, 3, 3, 4, 5, 5]


def test_readers_of_the_same_have_it_compared_once(tmp_path: Path) -> None:
    async def main() -> int:
        store = Counting(tmp_path / "results", tmp_path / "spool")
        await store.open()
        data = bytes(ALWAYS_BYTES + 1)
        digest = hashlib.sha256(data).hexdigest()
        (tmp_path / "spool" / "a").write_bytes(data)
        location = await store.adopt(tmp_path / "spool" / "a", digest=digest, size=len(data))
        verified = Verified(store)
        await asyncio.gather(*(verified.check(location, digest=digest, size=len(data)) for _ in range(8)))
        return store.compared

    assert asyncio.run(main()) == 1
