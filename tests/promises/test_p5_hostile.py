"""P5, at the HTTP edge: hostile requests and slow sockets hurt nobody but themselves.

No answer of 500, the same server process, bounded memory, and an honest client beside them that gets all its answers in
(about) its usual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from dataclasses import dataclass, field

import pytest
from tests.promises.form import FULL, Record, Serve
from tests.promises.honest import Honest, resident_mb
from tests.promises.hostile import Hostility
from tests.promises.slow_sockets import Outcome, SlowSockets

from dask_fleet.testing.served import ServedFleet

pytestmark = [pytest.mark.promise, pytest.mark.usefixtures("many_sockets")]

REQUESTS = 100_000 if FULL else 3_000
VOLLEY = 16
AT_ONCE = 4
SEED = 20260102
KINDS = {"silent": 300, "head": 300, "body": 350, "reader": 50}
OVERSIZED = 100
WARM_UP_S = 4.0 if FULL else 2.0
NOISE_MS = 250.0
"""A shared machine's own hiccups; the figures of a quiet one are shown."""

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Z]")


@dataclass
class Verdict:
    """What came of it."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    """Connections that were closed without a word."""
    rss_mb: float = 0.0
    p99_before_ms: float = 0.0
    p99_during_ms: float = 0.0
    honest_calls: int = 0
    honest_failed: list[str] = field(default_factory=list)
    same_process: bool = False

    def __str__(self) -> str:
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.sent} sent, answers {statuses}, {self.unanswered} closed without; memory +{self.rss_mb:.0f} MB; "
            f"honest p99 {self.p99_before_ms:.1f} ms before, {self.p99_during_ms:.1f} ms during, {self.honest_calls} calls"
        )


async def alone(fleet: ServedFleet, verdict: Verdict) -> None:
    """Measure the honest client without company."""
    async with Honest(fleet) as honest:
        await asyncio.sleep(WARM_UP_S)
        honest.seconds.clear()  # the first calls start processes and fill caches
        await asyncio.sleep(WARM_UP_S)
    assert not honest.failed, honest.failed[:3]
    verdict.p99_before_ms = honest.p99_ms()


def conclude(fleet: ServedFleet, verdict: Verdict, honest: Honest, pid: int) -> None:
    verdict.p99_during_ms = honest.p99_ms()
    verdict.honest_calls = len(honest.seconds)
    verdict.honest_failed = honest.failed
    verdict.same_process = fleet.server_pid() == pid and fleet.returncode is None


# ---------------------------------------------------------------------- hostile requests


async def fire(address: tuple[str, int], data: bytes) -> bytes:
    """Send a volley on a connection of its own; return all that comes back."""
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        async with asyncio.timeout(60):
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(1 << 16):
                    answer += piece
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


async def attack(fleet: ServedFleet) -> Verdict:
    verdict, pid = Verdict(), fleet.server_pid()
    host, port = fleet.url.removeprefix("http://").split(":")
    hostility = Hostility(SEED, fleet.token)
    await alone(fleet, verdict)
    before = resident_mb(pid)

    async def attacker() -> None:
        while verdict.sent < REQUESTS:
            volley = hostility.volley(VOLLEY)
            verdict.sent += volley.requests
            answer = await fire((host, int(port)), volley.data)
            statuses = [int(status) for status in _STATUS.findall(answer)]
            verdict.statuses.update(statuses)
            verdict.unanswered += not statuses
            verdict.rss_mb = max(verdict.rss_mb, resident_mb(pid) - before)

    async with Honest(fleet, first=1_000_000) as honest, asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(attacker(), name=f"attacker-{number}")
    conclude(fleet, verdict, honest, pid)
    return verdict


def test_hostile_requests_hurt_nobody(serve: Serve, record_property: Record) -> None:
    with serve() as fleet:
        verdict = asyncio.run(attack(fleet))
        record_property("figures", str(verdict))
        assert verdict.sent >= REQUESTS
        # What stands behind a broken request is not read.
        assert sum(verdict.statuses.values()) > 0.8 * verdict.sent, verdict
        assert not [status for status in verdict.statuses if status >= 500], f"{verdict}\n{fleet.logs()}"
        assert verdict.same_process
        assert not verdict.honest_failed, verdict.honest_failed[:3]
        assert verdict.rss_mb < 100, verdict
        assert verdict.p99_during_ms < max(2 * verdict.p99_before_ms, NOISE_MS), verdict
        assert "Traceback" not in fleet.logs()
        assert fleet.post("tiny/double", {"n": 21}, wait=30).json()["result"] == 42


# ---------------------------------------------------------------------- slow sockets


async def oversized(address: tuple[str, int], token: str, number: int) -> int:
    """Claim a gigabyte, or send without end; return what is answered."""
    length = "Transfer-Encoding: chunked" if number % 2 else f"Content-Length: {1 << 30}"
    head = (
        f"POST /v1/tiny/double HTTP/1.1\r\nHost: {address[0]}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\n{length}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(60):
            writer.write(head.encode())
            answering = asyncio.create_task(reader.readuntil(b"\r\n"), name="oversized-answer")
            with contextlib.suppress(ConnectionError):
                while not answering.done():
                    writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n" if number % 2 else b" " * 65_536)
                    await asyncio.wait({answering, asyncio.ensure_future(writer.drain())}, return_when="FIRST_COMPLETED")
            return int((await answering).split()[1])
    finally:
        writer.transport.abort()


async def besiege(fleet: ServedFleet) -> tuple[Verdict, Outcome, Counter[int]]:
    verdict, pid = Verdict(), fleet.server_pid()
    host, port = fleet.url.removeprefix("http://").split(":")
    blob = fleet.post("tiny/blob", {"mib": 32}, wait=30).json()
    await alone(fleet, verdict)
    before = resident_mb(pid)
    slow = SlowSockets(fleet, large_result=blob["links"]["result"])

    async def weigh() -> None:
        while True:
            verdict.rss_mb = max(verdict.rss_mb, resident_mb(pid) - before)
            await asyncio.sleep(0.1)

    scale = asyncio.create_task(weigh(), name="scale")
    try:
        async with Honest(fleet, first=1_000_000) as honest, asyncio.TaskGroup() as group:
            playing = group.create_task(slow.play(KINDS, deadline_s=90), name="slow sockets")
            await slow.all_open.wait()
            sizes = await asyncio.gather(*(oversized((host, int(port)), fleet.token, n) for n in range(OVERSIZED)))
            await playing
    finally:
        scale.cancel()
        await asyncio.gather(scale, return_exceptions=True)
    verdict.sent = sum(KINDS.values()) + OVERSIZED
    verdict.statuses.update(sizes)
    conclude(fleet, verdict, honest, pid)
    return verdict, slow.outcome, Counter(sizes)


def test_slow_sockets_and_large_bodies_hurt_nobody(serve: Serve, record_property: Record) -> None:
    with serve() as fleet:
        verdict, outcome, sizes = asyncio.run(besiege(fleet))
        record_property("figures", f"{verdict}; closed after at most {outcome.longest_s} s, told {dict(outcome.told)}")
        assert dict(outcome.closed) == KINDS, outcome
        assert not outcome.left_open, outcome
        assert outcome.told["body 408"] == KINDS["body"], outcome
        assert set(sizes) <= {413, 503}, sizes
        assert sizes[413] >= OVERSIZED // 2, sizes
        assert verdict.same_process
        assert not verdict.honest_failed, verdict.honest_failed[:3]
        assert verdict.rss_mb < 50, verdict
        assert verdict.p99_during_ms < max(2 * verdict.p99_before_ms, NOISE_MS), verdict
        assert "Traceback" not in fleet.logs()


# ---------------------------------------------------------------------- the twin


def test_the_checker_notices_a_server_without_deadlines(serve: Serve, record_property: Record) -> None:
    with serve(twin="stock-http") as fleet:
        slow = SlowSockets(fleet, large_result="/healthz")
        outcome = asyncio.run(slow.play({"silent": 20, "head": 20}, deadline_s=16))
        record_property("figures", str(outcome))
        assert outcome.left_open == {"silent": 20, "head": 20}, outcome


def grow(fleet: ServedFleet, *, megabytes: int) -> float:
    """Send a head without end; return by how much the server's memory grew meanwhile."""
    pid = fleet.server_pid()
    before = most = resident_mb(pid)
    host, port = fleet.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock, contextlib.suppress(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(megabytes * 16):
            sock.sendall(b"X%d: %s\r\n" % (number, b"a" * 65_500))
            most = max(most, resident_mb(pid))
    return most - before


def test_the_checker_notices_a_server_without_limits(serve: Serve, record_property: Record) -> None:
    with serve(twin="stock-http") as fleet:
        grown = grow(fleet, megabytes=150)
    record_property("figures", f"memory +{grown:.0f} MB")
    assert grown > 100


def test_a_head_without_end_costs_nothing(serve: Serve, record_property: Record) -> None:
    with serve() as fleet:
        grown = grow(fleet, megabytes=150)
    record_property("figures", f"memory +{grown:.0f} MB")
    assert grown < 20
