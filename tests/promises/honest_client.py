"""The honest client's process: calls on one connection, one after the other with a pause between, and notes their times.

Nothing but the standard library, no event loop and no threads, so that what it notes is the server's doing. It reads one
line of JSON (see `honest`) and calls until its standard input ends; then it writes what it has noted as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
import time
from typing import Any

TIMEOUT_S = 60.0
_PROCESS_CLOCK = 2
"""``CPUCLOCK_SCHED`` of the kernel: processor time of all threads, exact in nanoseconds."""
FRESH_EVERY = 50
"""Every so many calls one is new to the server; these are checked, and are not among the times."""
LARGE_BYTES = 200 << 10
SETS = 3
LINE_BYTES, LINE_S = 50 << 10, 0.005
"""A large body comes as over a line: else the server reads it all at once, and there is nothing to wait for."""


def read_answer(sock: socket.socket) -> tuple[bytes, Any]:
    """Read one answer; return its head and its document."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += _some(sock)
    return head, json.loads(body)


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 16)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


def processor_clock(pid: int) -> int:
    """Return the clock of a process's processor time, as ``clock_getcpuclockid`` does; no other user's may be read."""
    return (~pid << 3) | _PROCESS_CLOCK


def call_all(
    order: dict[str, Any],
    calls: list[tuple[float, float, float]],
    others: list[tuple[str, float, float]],
    failed: list[str],
) -> None:
    """Call until standard input ends."""
    host, port = order["address"]
    server = processor_clock(order["pid"])
    path = order["path"]
    common = f"HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {order['token']}\r\nContent-Type: application/json\r\n"
    head = f"POST {path} {common}Prefer: wait=30\r\nContent-Length: "
    batch_head = f"POST {path}:batch {common}Content-Length: "
    number, count, every = order["first"], 0, order["others_every"]

    def other(kind: str) -> None:
        """Send a batch of what is known already, or a large body, and note how long it took."""
        parameters = json.dumps({"n": number})
        is_batch = kind == "batch"
        body = f"[{','.join([parameters] * SETS)}]" if is_batch else parameters.ljust(LARGE_BYTES)
        begin = time.monotonic()
        data = f"{batch_head if is_batch else head}{len(body)}\r\n\r\n{body}".encode()
        for at in range(0, len(data), LINE_BYTES):
            time.sleep(LINE_S if at else 0)
            sock.sendall(data[at : at + LINE_BYTES])
        answer, document = read_answer(sock)
        others.append((kind, begin, time.monotonic() - begin))
        what, expected = ("accepted", SETS) if is_batch else ("result", order["factor"] * number + order["summand"])
        if document.get(what) != expected:
            failed.append(f"{kind}: {answer[:40]!r} {document}")

    with socket.create_connection((host, port), timeout=TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not select.select([sys.stdin], [], [], order["pause_s"])[0]:
            fresh = count % FRESH_EVERY == 0
            count += 1
            number += fresh
            if every and count % every == 0:
                other("batch" if count // every % 2 else "large")
            body = json.dumps({"n": number}).encode()
            before_s = time.clock_gettime(server)
            begin = time.monotonic()
            sock.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            answer, document = read_answer(sock)
            seconds = time.monotonic() - begin
            busy_s = time.clock_gettime(server) - before_s
            expected = order["factor"] * number + order["summand"]
            if document.get("result") != expected:
                failed.append(f"{answer[:40]!r} {document}")
            if not fresh:
                calls.append((begin, seconds, busy_s))


def main() -> None:
    """Do as ordered."""
    order = json.loads(sys.stdin.readline())
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    gc.disable()  # its own pauses are not the server's
    calls: list[tuple[float, float, float]] = []
    others: list[tuple[str, float, float]] = []
    failed: list[str] = []
    try:
        call_all(order, calls, others, failed)
    except (OSError, ValueError) as exc:
        failed.append(repr(exc))
    json.dump({"calls": calls, "others": others, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main()
