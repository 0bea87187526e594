"""The helper process behind large JSON renderings: fed, read, ended, whatever happens."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from tests.unit.server.rig import run

from dask_fleet.model.errors import CapacityError, InternalError
from dask_fleet.server import rendering
from dask_fleet.server.rendering import HELPER, Renderer


def helper(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


class Source:
    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.closed = False

    async def read(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self._pieces:
                yield piece
        finally:
            self.closed = True


async def rendered(renderer: Renderer, media_type: str, source: Source) -> bytes:
    async with aclosing(await renderer.start(media_type, source.read())) as pieces:
        return b"".join([piece async for piece in pieces])


def test_the_real_helper_renders() -> None:
    async def main() -> None:
        source = Source(b"one ", b"two\n")
        assert await rendered(Renderer(HELPER), "text/plain", source) == b'"one two\\n"'
        assert source.closed

    run(main())


def test_more_than_pipes_hold_goes_in_and_comes_out() -> None:
    async def main() -> None:
        echo = "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
        source = Source(*[bytes([n]) * 300_000 for n in range(10)])
        body = await rendered(Renderer(helper(echo)), "x/y", source)
        assert body == b"".join(bytes([n]) * 300_000 for n in range(10))

    run(main())


def test_a_helper_that_fails_at_once_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        source = Source(b"x" * 1_000_000)
        with pytest.raises(InternalError, match="stored form"):
            await Renderer(helper("import sys; sys.exit('no such form')")).start("x/y", source.read())

    run(main())
    assert "no such form" in caplog.text


def test_a_helper_that_fails_midway_breaks_the_answer_off() -> None:
    async def main() -> None:
        code = "import os, sys; sys.stdin.read(); os.write(1, b'[1'); sys.exit(3)"
        pieces = await Renderer(helper(code)).start("x/y", Source(b"x").read())
        async with aclosing(pieces):
            assert await anext(pieces) == b"[1"
            with pytest.raises(InternalError):
                await anext(pieces)

    run(main())


def test_leaving_midway_ends_the_helper_and_the_source() -> None:
    async def main() -> None:
        # It speaks only once it was fed: a source nobody has begun to read has nothing to close.
        code = "import os, time; os.read(0, 1); os.write(1, b'%d' % os.getpid()); time.sleep(60)"
        source = Source(*[b"x" * 100_000] * 100)
        pieces = await Renderer(helper(code)).start("x/y", source.read())
        pid = int(await anext(pieces))
        await pieces.aclose()
        assert source.closed
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(main())


def test_helpers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "QUEUE_TIMEOUT_S", 0.01)

    async def main() -> None:
        renderer = Renderer(helper("import time; print(1, flush=True); time.sleep(60)"))
        held = [await renderer.start("x/y", Source().read()) for _ in range(rendering.MAX_PROCESSES)]
        with pytest.raises(CapacityError):
            await renderer.start("x/y", Source().read())
        for pieces in held:
            await pieces.aclose()
        async with aclosing(await renderer.start("x/y", Source().read())):
            pass

    run(main())


def test_an_empty_rendering_is_one() -> None:
    async def main() -> None:
        assert await rendered(Renderer(helper("pass")), "x/y", Source(b"x" * 1_000_000)) == b""

    run(main())


def test_a_helper_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "STALL_TIMEOUT_S", 0.05)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Renderer(helper("import time; time.sleep(60)")).start("x/y", Source(b"x").read())
        assert len(asyncio.all_tasks()) == 1

    run(main())
