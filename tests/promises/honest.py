"""An honest client beside hostile ones: calls all the time on a connection of its own, and notes how long each takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Self

from dask_fleet.testing.served import ServedFleet

PAUSE_S = 0.004


class Honest:
    """``async with Honest(fleet) as honest``: asks for results that are there already, and now and then for a new one."""

    def __init__(self, fleet: ServedFleet, *, first: int = 0) -> None:
        host, port = fleet.url.removeprefix("http://").split(":")
        self._address = host, int(port)
        self._head = (
            f"POST /v1/tiny/double HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {fleet.token}\r\n"
            "Prefer: wait=30\r\nContent-Type: application/json\r\nContent-Length: "
        )
        self._next = first
        self.seconds: list[float] = []
        """Of the repeated calls, which the server answers alone."""
        self.failed: list[str] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._call_all(), name="honest")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def p99_ms(self) -> float:
        """Return the ninety-ninth percentile."""
        ordered = sorted(self.seconds)
        return 1e3 * ordered[int(0.99 * (len(ordered) - 1))]

    async def _call_all(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            count = 0
            while True:
                count += 1
                fresh = count % 50 == 1
                self._next += fresh
                body = json.dumps({"n": self._next}).encode()
                begin = time.monotonic()
                writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
                async with asyncio.timeout(60):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                    document = json.loads(await reader.readexactly(length))
                if document.get("result") != 2 * self._next:
                    self.failed.append(f"{head[:40]!r} {document}")
                if not fresh:
                    self.seconds.append(time.monotonic() - begin)
                await asyncio.sleep(PAUSE_S)
        except (OSError, EOFError, TimeoutError, ValueError) as exc:
            self.failed.append(repr(exc))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024
