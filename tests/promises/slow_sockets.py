"""A thousand sockets that take their time: silent, a head or a body byte by byte, an answer that is never read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

TRICKLE_S = 1.0
_PER_ADDRESS = 400
"""Less than a server takes of one address."""


@dataclass
class Outcome:
    """What became of the sockets of each kind."""

    closed: Counter[str] = field(default_factory=Counter)
    left_open: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    longest_s: dict[str, float] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    """Answers that came before the end."""
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    """When (``time.monotonic``) the first and the last of each kind was found closed: up to `TRICKLE_S` after it was."""


class SlowSockets:
    """Opens sockets of some kinds, and plays each until the server closes it or time is up."""

    def __init__(self, address: tuple[str, int], token: str, *, path: str, large_result: str) -> None:
        self._address = address
        common = f"Host: {address[0]}\r\nAuthorization: Bearer {token}\r\n"
        body = f"POST {path} HTTP/1.1\r\n{common}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
        self._first = {
            "silent": b"",
            "head": f"GET /healthz HTTP/1.1\r\n{common}X-Slow: a".encode(),
            "body": body.encode(),
            "reader": f"GET {large_result} HTTP/1.1\r\n{common}\r\n".encode(),
        }
        self.outcome = Outcome()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, kinds: dict[str, int], *, deadline_s: float) -> None:
        """Open so many sockets of each kind, as fast as they are taken; they are played until `ended`."""
        opened, number = asyncio.Semaphore(0), 0
        gate = asyncio.Semaphore(50)
        for kind, count in kinds.items():
            for _ in range(count):
                source = f"127.0.0.{2 + number // _PER_ADDRESS}"
                number += 1
                task = asyncio.create_task(self._one(kind, source, gate, opened, deadline_s), name=f"slow {kind}")
                self._tasks.add(task)
        for _ in range(number):
            await opened.acquire()

    async def ended(self) -> Outcome:
        """Wait until each is closed or its time is up."""
        await asyncio.gather(*self._tasks)
        return self.outcome

    async def drop(self) -> None:
        """Hang up, all at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _one(
        self, kind: str, source: str, gate: asyncio.Semaphore, opened: asyncio.Semaphore, deadline_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.bind((source, 0))
            async with gate:
                await loop.sock_connect(sock, self._address)
                if self._first[kind]:
                    await loop.sock_sendall(sock, self._first[kind])
            begin = time.monotonic()
            opened.release()
            while time.monotonic() - begin < deadline_s:
                await asyncio.sleep(TRICKLE_S)
                try:
                    if kind == "reader":
                        if _is_reset(sock):
                            break
                        continue
                    with contextlib.suppress(BlockingIOError):
                        data = sock.recv(4_096)
                        if not data:
                            break
                        self.outcome.told[f"{kind} {data[9:12].decode('latin-1')}"] += 1
                    if kind != "silent":
                        sock.send(b"a" if kind == "head" else b" ")
                except BlockingIOError:
                    continue
                except OSError:
                    break
            else:
                self.outcome.left_open[kind] += 1
                return
            now = time.monotonic()
            self.outcome.closed[kind] += 1
            self.outcome.seen[kind] = self.outcome.seen.get(kind, (now, now))[0], now
            seconds = now - begin
            self.outcome.longest_s[kind] = round(max(seconds, self.outcome.longest_s.get(kind, 0.0)), 1)


def _is_reset(sock: socket.socket) -> bool:
    """Look whether the server has dropped the connection, without reading from it."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] != 1  # TCP_ESTABLISHED
