"""P1: a 202 means it is on disk. Under strace, each answer to a fresh call comes after an fsync of the ledger that began
after the request was read; so power may fail the moment the client has its answer.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.promises.form import FULL, Record, Serve

ACKS = 1000 if FULL else 100
TRACED = "fsync,fdatasync,read,recvfrom,recvmsg,write,writev,sendto,sendmsg"

pytestmark = [
    pytest.mark.promise,
    pytest.mark.skipif(
        shutil.which("strace") is None and not (os.environ.get("CI") or FULL),
        reason="strace is not installed: apt-get install strace (where CI is set, and in the full form, this fails instead)",
    ),
]

_LINE = re.compile(r"(?P<tid>\d+) +(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<fd>\d+)<(?P<path>.*?)>(?P<args>, .*| <unfinished.*|\).*)$")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<args>.*)")
_SYNCS = frozenset({"fsync", "fdatasync"})
_READS = frozenset({"read", "recvfrom", "recvmsg"})


@dataclass(frozen=True)
class Order:
    """What a trace tells of the answers to fresh calls."""

    answers: int
    synced: int


def order_of(trace: str) -> Order:
    """Count the answers in a trace (``strace -f -y``), and those before which an fsync began after their request was read.

    Calls of several threads interleave: what strace cuts in two (``<unfinished ...>``, ``resumed``) is joined by thread; an
    fsync counts from the line where it begins, and only when it has ended well.
    """
    begun: dict[str, tuple[int, str, str, str]] = {}
    asked: dict[str, int] = {}
    last_synced = -1  # where the latest-begun of the completed fsyncs of the ledger began
    answers = synced = 0
    for number, line in enumerate(trace.splitlines()):
        parts = _LINE.match(line)
        if parts is None:
            continue
        tid, rest = parts["tid"], parts["rest"]
        resumed = _RESUMED.match(rest)
        if resumed is not None:
            if tid not in begun:
                continue
            start, name, fd, path = begun.pop(tid)
            args = resumed["args"]
        else:
            call = _CALL.match(rest)
            if call is None:
                continue
            start, name, fd, path, args = number, call["name"], call["fd"], call["path"], call["args"]
            # What is written leaves at the beginning of the call, what is read is known at its end.
            if name not in _SYNCS | _READS and '"HTTP/1.1 20' in args and fd in asked:
                answers += 1
                synced += last_synced > asked.pop(fd)
            if args.endswith("<unfinished ...>"):
                begun[tid] = (start, name, fd, path)
                continue
        if name in _SYNCS and "ledger.db" in path and args.rstrip().endswith("= 0"):
            last_synced = max(last_synced, start)
        elif name in _READS and '"POST /v1/tiny/double' in args:
            asked[fd] = number
    return Order(answers, synced)


def traced(serve: Serve, tmp_path: Path, command: tuple[str, ...]) -> Order:
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-y", "-s", "40", "-qq", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", str(trace))
    with serve(command=(*strace, *command), ready_timeout_s=60) as fleet, fleet.connect() as connection:
        for number in range(ACKS):
            headers = {"Prefer": "wait=20"} if number % 2 else {}
            answer = connection.request("POST", "/v1/tiny/double", {"n": number}, headers=headers)
            assert answer.status == (200 if number % 2 else 202), answer
    order = order_of(trace.read_text("utf-8", "replace"))
    assert order.answers == ACKS, "the trace does not show all answers"
    return order


def test_every_answer_comes_after_its_fsync(serve: Serve, tmp_path: Path, record_property: Record) -> None:
    order = traced(serve, tmp_path, (_fleet(),))
    record_property("figures", str(order))
    assert order.synced == ACKS


def test_the_checker_notices_commits_without_fsync(serve: Serve, tmp_path: Path, record_property: Record) -> None:
    python, twins = _fleet("python"), str(Path(__file__).with_name("twins.py"))
    order = traced(serve, tmp_path, (python, twins, "synchronous-normal"))
    record_property("figures", str(order))
    assert order.synced < ACKS // 2


def _fleet(name: str = "dask-fleet") -> str:
    return str(Path(sys.executable).with_name(name))


# ---------------------------------------------------------------------- the reader of traces itself

ASK = '7 read(15<socket:[99]>, "POST /v1/tiny/double HTTP/1.1\\r\\n"..., 65536) = 120\n'
SYNC = "8 fdatasync(9</d/ledger.db-wal>) = 0\n"
TELL = '7 write(15<socket:[99]>, "HTTP/1.1 202 Accepted\\r\\n"..., 500) = 500\n'


@pytest.mark.parametrize(
    ("trace", "synced"),
    [
        (ASK + SYNC + TELL, 1),
        (SYNC + ASK + TELL, 0),
        (ASK + TELL + SYNC, 0),
        (ASK + SYNC.replace("ledger.db-wal", "outbox") + TELL, 0),
        (ASK + SYNC.replace("= 0", "= -1 EIO") + TELL, 0),
        ("8 fdatasync(9</d/ledger.db-wal> <unfinished ...>\n" + ASK + "8 <... fdatasync resumed>) = 0\n" + TELL, 0),
        (ASK + "8 fdatasync(9</d/ledger.db-wal> <unfinished ...>\n" + TELL + "8 <... fdatasync resumed>) = 0\n", 0),
        (ASK + "8 fdatasync(9</d/ledger.db-wal> <unfinished ...>\n8 <... fdatasync resumed>) = 0\n" + TELL, 1),
    ],
)
def test_the_order_in_a_trace(trace: str, synced: int) -> None:
    assert order_of(trace) == Order(1, synced)
