"""Attackers, in a process of their own: what they do must not be taken for what the server does.

They read orders, one line of JSON each, and answer each with a line when it is done: with what came of it and with its begin
and end (``time.monotonic``, the same for all processes), so that an honest client's calls can be told apart by phase.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import uvloop
from tests.promises.honest import Target
from tests.promises.hostile import Hostility, Volley
from tests.promises.slow_sockets import SlowSockets

ROOT = Path(__file__).parent.parent.parent
SEED = 20260102
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Z]")
_VOLLEY = 16
_VOLLEYS = 600
_TIMEOUT_S = 60.0


class Attackers:
    """``with Attackers(target) as attackers``: gives orders to a process of attackers, which is gone after the block.

    Parameters
    ----------
    polite
        Whether they take only the processor time that nobody else wants (the kernel's ``SCHED_IDLE``). What an honest client
        notices of polite attackers is the server's doing; of others, it may be that they have the core.
    cores
        To which they are bound; empty for all.
    """

    def __init__(
        self, target: Target, *, polite: bool = False, cores: Collection[int] = (), large_result: str = "/healthz"
    ) -> None:
        self._order = {
            "address": target.address,
            "token": target.token,
            "path": target.path,
            "large_result": large_result,
            "polite": polite,
            "cores": sorted(cores),
        }

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.promises.attackers"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._tell(self._order)
        self._hear()  # it has imported what it needs
        return self

    def __exit__(self, *_: object) -> None:
        with self._child as child:
            child.kill()

    def do(self, what: str, **how: Any) -> dict[str, Any]:
        """Order something, and wait until it is done; return what came of it, with ``begin`` and ``end``.

        Raises
        ------
        RuntimeError
            If the attackers failed.
        """
        self._tell({"do": what, **how})
        return self._hear()

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(order) + "\n")  # by a pipe: command lines are for all to read
        self._child.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the attackers' process has ended: {self._child.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# ---------------------------------------------------------------------- in their process


async def _send_on(sock: socket.socket, head: bytes, piece: bytes) -> None:
    """Send without end."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        await loop.sock_sendall(sock, head)
        while True:
            await loop.sock_sendall(sock, piece)


class _Attack:
    def __init__(self, order: dict[str, Any]) -> None:
        self._address: tuple[str, int] = (order["address"][0], order["address"][1])
        self._token, self._path, self._large_result = order["token"], order["path"], order["large_result"]
        self._slow = self._new_slow()
        self._hostility = Hostility(SEED, self._token)
        self._volleys: list[Volley] = []

    def _new_slow(self) -> SlowSockets:
        return SlowSockets(self._address, self._token, path=self._path, large_result=self._large_result)

    async def make(self) -> dict[str, Any]:
        """Make volleys now, so that making them takes no time of the attack, which sends them again and again."""
        self._volleys = [self._hostility.volley(_VOLLEY) for _ in range(_VOLLEYS)]
        return {}

    async def open(self, *, kinds: dict[str, int], deadline_s: float) -> dict[str, Any]:
        """Open slow sockets."""
        await self._slow.open(kinds, deadline_s=deadline_s)
        return {}

    async def rest(self, *, seconds: float) -> dict[str, Any]:
        """Do nothing else; slow sockets that are open trickle."""
        await asyncio.sleep(seconds)
        return {}

    async def ended(self) -> dict[str, Any]:
        """Wait for the end of all slow sockets."""
        return {"outcome": vars(await self._slow.ended())}

    async def drop(self) -> dict[str, Any]:
        """Hang up on all slow sockets at once."""
        await self._slow.drop()
        self._slow = self._new_slow()
        return {}

    async def oversized(self, *, count: int) -> dict[str, Any]:
        """Send so many bodies without end, all at the same time."""
        statuses = await asyncio.gather(*(self._oversized(number) for number in range(count)))
        return {"statuses": [[status, times] for status, times in Counter(statuses).items()]}

    async def _oversized(self, number: int) -> int:
        """Claim a gigabyte, or send without end; return what is answered."""
        length = "Transfer-Encoding: chunked" if number % 2 else f"Content-Length: {1 << 30}"
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._address[0]}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\n{length}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        # A bare socket: what the server has said before it hangs up can be read after a failed write.
        with socket.socket() as sock:
            sock.setblocking(False)
            async with asyncio.timeout(_TIMEOUT_S):
                await loop.sock_connect(sock, self._address)
                piece = b"10000\r\n" + b" " * 65_536 + b"\r\n" if number % 2 else b" " * 65_536
                sending = asyncio.create_task(_send_on(sock, head.encode(), piece), name="oversized-body")
                try:
                    answer = b""
                    while b"\r\n" not in answer and (got := await loop.sock_recv(sock, 4_096)):
                        answer += got
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
                return int(answer.split()[1])

    async def hoard(self, *, batches: int, bodies: int, seconds: float) -> dict[str, Any]:
        """Announce batches of 16 MiB and fall silent: some after one byte, the others after 100 KiB or 1.5 MiB.

        Who is sent away comes again.
        """
        told: Counter[str] = Counter()
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(batches + bodies):
                size = 1 if number < batches else (100 << 10, 1536 << 10)[number % 2]
                group.create_task(self._hoard(size, end, told), name=f"hoarder-{number}")
        return {"told": dict(told)}

    async def _hoard(self, size: int, end: float, told: Counter[str]) -> None:
        head = (
            f"POST {self._path}:batch HTTP/1.1\r\nHost: {self._address[0]}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {16 << 20}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        while time.monotonic() < end:
            with socket.socket() as sock, contextlib.suppress(OSError, TimeoutError):
                sock.setblocking(False)
                async with asyncio.timeout(end - time.monotonic()):
                    await loop.sock_connect(sock, self._address)
                    await loop.sock_sendall(sock, head.encode() + b" " * size)
                    answer = await loop.sock_recv(sock, 4_096)
                    told[answer[9:12].decode("latin-1") or "nothing"] += 1
            await asyncio.sleep(0.1)

    async def volleys(self, *, requests: int, seconds: float, per_s: float, at_once: int) -> dict[str, Any]:
        """Send hostile requests, so many or for so long, each volley on its own connection; `per_s` 0: without limit."""
        statuses: Counter[int] = Counter()
        sent = unanswered = number = 0
        begin = time.monotonic()

        async def attacker() -> None:
            nonlocal sent, unanswered, number
            while sent < requests and time.monotonic() - begin < seconds:
                made = self._volleys
                volley = made[number % len(made)] if made else self._hostility.volley(_VOLLEY)
                number += 1
                sent += volley.requests
                if per_s:
                    await asyncio.sleep(max(0.0, sent / per_s - (time.monotonic() - begin)))
                found = [int(status) for status in _STATUS.findall(await _fire(self._address, volley.data))]
                statuses.update(found)
                unanswered += not found

        async with asyncio.TaskGroup() as group:
            for one in range(at_once):
                group.create_task(attacker(), name=f"attacker-{one}")
        return {"sent": sent, "unanswered": unanswered, "statuses": list(statuses.items())}


async def _fire(address: tuple[str, int], data: bytes) -> bytes:
    """Send a volley on a connection of its own; return all that comes back."""
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                while piece := await reader.read(1 << 16):
                    answer += piece
    finally:
        writer.transport.abort()
    return answer


async def _serve_orders() -> None:
    order = json.loads(sys.stdin.readline())
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    if order["polite"]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    attack = _Attack(order)
    _answer({})
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        what = order.pop("do")
        begin = time.monotonic()
        done = await getattr(attack, what)(**order)
        _answer({**done, "begin": begin, "end": time.monotonic()})


def _answer(done: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(done) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do as ordered, until there are no more orders."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_orders())


if __name__ == "__main__":
    main()
