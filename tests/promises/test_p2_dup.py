"""P2: the same request is the same job. A thousand sockets post one request at once: one job, one start, one answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass

import pytest
from tests.promises.form import FULL, Record, Serve, Starts
from tests.promises.ledger_audit import count_jobs

from dask_fleet.testing.served import ServedFleet

pytestmark = [pytest.mark.promise, pytest.mark.usefixtures("many_sockets")]

CALLERS = 1000
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Verdict:
    """What came of some rounds."""

    rounds: int
    answers: int
    equal: int
    """Answers that are those of their round's first."""
    jobs: int
    starts: int


async def shout(fleet: ServedFleet, number: int) -> list[tuple[int, object, object]]:
    """Post the same request on a thousand sockets at once; return each answer's status, job and result."""
    host, port = fleet.url.removeprefix("http://").split(":")
    body = b'{"n":%d}' % number
    request = (
        f"POST /v1/tiny/once HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {fleet.token}\r\nPrefer: wait=50\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
    everyone_is_there = asyncio.Barrier(CALLERS)
    dialling = asyncio.Semaphore(100)  # the backlog of a listening socket is short

    async def call() -> tuple[int, object, object]:
        async with dialling:
            reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await everyone_is_there.wait()
            writer.write(request)
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        document = json.loads(content)
        return int(head.split(b" ")[1]), document.get("job_id"), json.dumps(document.get("result"))

    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*(call() for _ in range(CALLERS)))


ONE_LOUD_PEER = ("--nworkers", "2", "--max-connections-per-peer", "2000")


def shout_in_rounds(fleet: ServedFleet, rounds: int, starts: Starts) -> Verdict:
    with fleet:
        answers = [Counter(asyncio.run(shout(fleet, number))) for number in range(rounds)]
        fleet.terminate()
    return Verdict(
        rounds=rounds,
        answers=sum(round_.total() for round_ in answers),
        equal=sum(round_.most_common(1)[0][1] for round_ in answers if round_.most_common(1)[0][0][0] == 200),
        jobs=count_jobs(fleet.data_dir),
        starts=len(starts()),
    )


def test_a_thousand_equal_requests_are_one_job(serve: Serve, starts: Starts, record_property: Record) -> None:
    rounds = 20 if FULL else 3
    verdict = shout_in_rounds(serve(args=ONE_LOUD_PEER), rounds, starts)
    record_property("figures", str(verdict))
    assert verdict == Verdict(rounds=rounds, answers=rounds * CALLERS, equal=rounds * CALLERS, jobs=rounds, starts=rounds)


def test_the_checker_notices_check_then_insert(serve: Serve, starts: Starts, record_property: Record) -> None:
    rounds = 1
    verdict = shout_in_rounds(serve(twin="check-then-insert", args=ONE_LOUD_PEER), rounds, starts)
    record_property("figures", str(verdict))
    assert verdict.jobs > rounds
    assert verdict.starts > rounds
    assert verdict.equal < verdict.answers


def test_an_idempotency_key_stands_for_one_request(serve: Serve, starts: Starts) -> None:
    with serve() as fleet:
        first = fleet.post("tiny/once", {"n": 1}, wait=20, Idempotency_Key="k-1")
        same = fleet.post("tiny/once", {"n": 1}, wait=20, Idempotency_Key="k-1")
        other = fleet.post("tiny/once", {"n": 2}, wait=20, Idempotency_Key="k-1")
        fleet.terminate()
    assert (first.status, same.status, other.status) == (200, 200, 422)
    assert first.json()["job_id"] == same.json()["job_id"]
    assert other.json()["code"] == "idempotency_mismatch"
    assert starts() == ["1"]
    assert count_jobs(fleet.data_dir) == 1
