"""P5, at the HTTP edge: hostile requests and slow sockets hurt nobody but themselves.

No answer of 500, the same server process, bounded memory, and an honest client beside them that gets all its answers in
(about) its usual time.

Most of it is waiting for deadlines. So in the short form all scenes are played at the same time, each with a server of its
own, and the deadlines of 30 s are 12 s; in the full form one after the other, as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.promises.form import FULL, Record
from tests.promises.honest import Honest, resident_mb
from tests.promises.hostile import Hostility
from tests.promises.slow_sockets import Outcome, SlowSockets

from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

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


def hostile_requests(fleet: ServedFleet) -> Verdict:
    verdict = asyncio.run(attack(fleet))
    assert "Traceback" not in fleet.logs()
    assert fleet.post("tiny/double", {"n": 21}, wait=30).json()["result"] == 42
    # What stands behind a broken request is not read.
    assert not [status for status in verdict.statuses if status >= 500], f"{verdict}\n{fleet.logs()}"
    return verdict


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


def slow_sockets(fleet: ServedFleet) -> tuple[Verdict, Outcome, Counter[int]]:
    found = asyncio.run(besiege(fleet))
    assert "Traceback" not in fleet.logs()
    return found


# ---------------------------------------------------------------------- without end


def stay_silent(fleet: ServedFleet) -> Outcome:
    return asyncio.run(SlowSockets(fleet, large_result="/healthz").play({"silent": 20, "head": 20}, deadline_s=16))


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


# ---------------------------------------------------------------------- the tests

SCENES: dict[str, tuple[Callable[[ServedFleet], Any], str | None]] = {
    "slow sockets": (slow_sockets, None if FULL else "hurried"),
    "stock, silent": (stay_silent, "stock-http"),
    "hostile requests": (hostile_requests, None),
    "stock, endless head": (lambda fleet: grow(fleet, megabytes=150), "stock-http"),
    "endless head": (lambda fleet: grow(fleet, megabytes=150), None),
}
"""What is done to a fleet, and which twin of it. The longest first."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, many_sockets: None) -> Iterator[dict[str, Future[Any]]]:
    def play(name: str, folder: Path) -> Any:
        scene, twin = SCENES[name]
        command = None if twin is None else (sys.executable, str(Path(__file__).with_name("twins.py")), twin)
        service = Path(__file__).with_name("service_tiny.py")
        env = {"TINY_STARTS": str(folder / "starts")}
        with ServedFleet([service], folder / "data", args=("--nworkers", "2"), env=env, command=command) as fleet:
            return scene(fleet)

    with ThreadPoolExecutor(1 if FULL else len(SCENES), "scene") as pool:
        yield {name: pool.submit(play, name, tmp_path_factory.mktemp("hostile")) for name in SCENES}


def test_hostile_requests_hurt_nobody(played: dict[str, Future[Any]], record_property: Record) -> None:
    verdict = played["hostile requests"].result()
    record_property("figures", str(verdict))
    assert verdict.sent >= REQUESTS
    assert sum(verdict.statuses.values()) > 0.8 * verdict.sent, verdict
    assert verdict.same_process
    assert not verdict.honest_failed, verdict.honest_failed[:3]
    assert verdict.rss_mb < 100, verdict
    assert verdict.p99_during_ms < max(2 * verdict.p99_before_ms, NOISE_MS), verdict


def test_slow_sockets_and_large_bodies_hurt_nobody(played: dict[str, Future[Any]], record_property: Record) -> None:
    verdict, outcome, sizes = played["slow sockets"].result()
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


def test_the_checker_notices_a_server_without_deadlines(played: dict[str, Future[Any]], record_property: Record) -> None:
    outcome = played["stock, silent"].result()
    record_property("figures", str(outcome))
    assert outcome.left_open == {"silent": 20, "head": 20}, outcome


def test_a_head_without_end_costs_nothing(played: dict[str, Future[Any]], record_property: Record) -> None:
    grown, stock = played["endless head"].result(), played["stock, endless head"].result()
    record_property("figures", f"memory +{grown:.0f} MB; of a server without limits +{stock:.0f} MB")
    assert grown < 20
    assert stock > 100, "the checker would not notice"
