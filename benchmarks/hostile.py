"""What an honest client notices of an attack: its calls' times alone, beside a paced attack, and beside one without limit.

    python -m benchmarks.hostile [--rounds 3] [--output docs/benchmarks.md]

The attackers send the requests of the promise tests (`tests/promises/hostile.py`: broken HTTP, JSON, headers, ids, methods,
tokens), made before the time is taken, from a process of their own on the same cores. Paced, they leave processor time to
spare: what the honest client then waits for longer is the server's doing. Without a limit the attackers' process competes
with the server and the client for the cores, too. The honest client asks, on one connection, for a result that is there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from tests.promises.hostile import Hostility

from benchmarks import report
from benchmarks.processes import ROOT
from benchmarks.systems import System, fleet

WINDOW_S = 6.0
SETTLE_S = 0.7
PACED_PER_S = 400.0
CONNECTIONS = 4
PAUSE_S = 0.004
_VOLLEY = 16
_VOLLEYS = 600
_SEED = 20260102


class Attack(msgspec.Struct, kw_only=True, frozen=True):
    """What attackers are to do."""

    host: str
    port: int
    token: str
    per_s: float
    """Requests; 0 for as many as are answered."""
    seconds: float


class Damage(msgspec.Struct, kw_only=True, frozen=True):
    """What they have done."""

    sent: int
    broken: int
    """Answers of 500 and above."""
    seconds: float


# ---------------------------------------------------------------------- the attackers


async def attack(order: Attack) -> Damage:
    """Send volleys, each on a connection of its own, until the time is over."""
    hostility = Hostility(_SEED, order.token)
    volleys = [hostility.volley(_VOLLEY) for _ in range(_VOLLEYS)]
    sent = broken = number = 0
    begin = time.perf_counter()

    async def attacker() -> None:
        nonlocal sent, broken, number
        while time.perf_counter() - begin < order.seconds:
            volley = volleys[number % _VOLLEYS]
            number += 1
            sent += volley.requests
            if order.per_s:
                await asyncio.sleep(max(0.0, sent / order.per_s - (time.perf_counter() - begin)))
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(30):
                    broken += (await _fire(order, volley.data)).count(b"HTTP/1.1 5")

    async with asyncio.TaskGroup() as group:
        for one in range(CONNECTIONS):
            group.create_task(attacker(), name=f"attacker {one}")
    return Damage(sent=sent, broken=broken, seconds=time.perf_counter() - begin)


async def _fire(order: Attack, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(order.host, order.port)
    answer = b""
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                answer += piece
    finally:
        writer.transport.abort()
    return answer


# ---------------------------------------------------------------------- the honest client


def ask(system: System, seconds: float) -> list[float]:
    """Ask for a result that is there, again and again with a pause between; return the seconds of each call, in order."""
    host, _, port = system.url.removeprefix("http://").partition(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in system.headers.items())
    body = b'{"n":1}'
    text = f"POST {system.path} HTTP/1.1\r\nHost: {host}\r\n{head}Content-Type: application/json\r\n"
    request = f"{text}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def main() -> list[float]:
        reader, writer = await asyncio.open_connection(host, int(port))
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            writer.write(request)
            async with asyncio.timeout(30):
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                document = msgspec.json.decode(await reader.readexactly(length))
            if document.get("result") != 2:
                raise RuntimeError(f"the honest client was answered {document}")
            times.append(time.perf_counter() - begin)
            await asyncio.sleep(PAUSE_S)
        writer.close()
        return times

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def quantile_ms(times: Sequence[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    ordered = sorted(times)
    return 1e3 * ordered[int(share * (len(ordered) - 1))]


# ---------------------------------------------------------------------- the measurement


def under_attack(add: Callable[[str, float], None], folder: Path, *, rounds: int, window_s: float = WINDOW_S) -> None:
    """Measure all three, in turn, `rounds` times."""
    add("hostile load average", os.getloadavg()[0])
    with fleet(folder) as (system, served, _):
        ask(system, 2.0)  # the first calls start processes and fill caches
        for _ in range(rounds):
            alone = ask(system, window_s)
            add("hostile alone p50 ms", quantile_ms(alone, 0.5))
            add("hostile alone p99 ms", quantile_ms(alone, 0.99))
            for name, per_s in (("paced", PACED_PER_S), ("unlimited", 0.0)):
                before_s = _cpu_s(served.server_pid())
                times, damage = _beside(system, served.token, per_s, window_s)
                cpu_s = _cpu_s(served.server_pid()) - before_s
                if damage.broken:
                    raise RuntimeError(f"{damage.broken} of {damage.sent} hostile requests were answered with 500 or above")
                add(f"hostile {name} per s", damage.sent / damage.seconds)
                add(f"hostile {name} server cpu", cpu_s / damage.seconds)
                add(f"hostile {name} p50 ms", quantile_ms(times, 0.5))
                add(f"hostile {name} p99 ms", quantile_ms(times, 0.99))
                add(f"hostile {name} p99 ratio", quantile_ms(times, 0.99) / quantile_ms(alone, 0.99))


def _beside(system: System, token: str, per_s: float, window_s: float) -> tuple[list[float], Damage]:
    host, _, port = system.url.removeprefix("http://").partition(":")
    order = Attack(host=host, port=int(port), token=token, per_s=per_s, seconds=window_s + 2 * SETTLE_S)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hostile", "--attack"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(msgspec.json.encode(order) + b"\n")  # by a pipe: command lines are for all to read
            child.stdin.close()
            child.stdout.readline()  # it begins
            time.sleep(SETTLE_S)
            times = ask(system, window_s)
            return times, msgspec.json.decode(child.stdout.read(), type=Damage)
        finally:
            child.kill()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    """Attack, if told so by our parent; else measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the report whose section on this is to be made anew")
    parser.add_argument("--attack", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Attack)
        print("begins", flush=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            damage: Any = runner.run(attack(order))
        print(msgspec.json.encode(damage).decode())
        return

    samples: dict[str, list[float]] = {}

    def show(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"  {name:40} {value:10.3f}", flush=True)

    with tempfile.TemporaryDirectory(prefix="fleet-hostile-") as folder:
        under_attack(show, Path(folder), rounds=options.rounds)
    lines = report.hostile(lambda name: statistics.median(samples[name]) if name in samples else None)
    print("\n".join(lines))
    if options.output is not None:
        text = options.output.read_text(encoding="utf-8")
        options.output.write_text(report.with_section(text, report.HOSTILE, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
