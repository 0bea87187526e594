"""P1: a 202 means it is on disk. The server is killed with -9 at random moments of a burst; every acknowledged call is kept.

``kill -9`` cannot tell whether an fsync is missing (the kernel still has the bytes): see ``test_p1_fsync_order.py``.
"""

from __future__ import annotations

import http.client
import random
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import pytest
from tests.promises.form import FULL, Record, Serve
from tests.promises.ledger_audit import audit

from dask_fleet.model.ids import job_id
from dask_fleet.model.states import RunState
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

THREADS = 16  # group commit: what waits together is written together
SEED = 20260101
READY_AGAIN_S = 3.0
"""From the kill to the first acknowledged call, in the median: the interpreter, the ledger, the service, and the agent."""


@dataclass
class Log:
    """What the clients have seen: of each call by its number."""

    acked: dict[int, str] = field(default_factory=dict)
    """The id that a 202 or 200 named."""
    unknown: list[int] = field(default_factory=list)
    """Sent, but the server died before it answered."""
    refused: Counter[int] = field(default_factory=Counter)


class Burst:
    """Client threads that post distinct calls as fast as they can, and hold still while the server is down."""

    def __init__(self, fleet: ServedFleet) -> None:
        self.log = Log()
        self._fleet = fleet
        self._lock = threading.Lock()
        self._next = 0
        self._up = threading.Event()
        self._stop = False
        self._acked_at: float | None = None
        """When the first call was acknowledged since `go`."""
        self._threads = [threading.Thread(target=self._post_all, name=f"client-{i}") for i in range(THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._up.set()
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive()

    def go(self) -> None:
        self._acked_at = None
        self._up.set()

    def hold(self) -> None:
        self._up.clear()

    def until_acked(self) -> float:
        """Wait for the first acknowledgement since `go`; return when it came (monotonic)."""
        acked_at: float = self._fleet.until(lambda: self._acked_at, "a call to be acknowledged")
        return acked_at

    def _post_all(self) -> None:
        connection = self._fleet.connect(timeout_s=30)
        with connection:
            while True:
                self._up.wait()
                if self._stop:
                    return
                with self._lock:
                    number = self._next
                    self._next += 1
                try:
                    answer = connection.request("POST", "/v1/tiny/double", b'{"n":%d}' % number)
                except (OSError, http.client.HTTPException):
                    self.log.unknown.append(number)
                    # Killed; the one who killed will say when to go on. A moment's grace lets `hold` come first.
                    time.sleep(0.005)
                    continue
                if answer.status in {200, 202}:
                    self.log.acked[number] = answer.json()["job_id"]
                    if self._acked_at is None:
                        self._acked_at = time.monotonic()
                else:
                    self.log.refused[answer.status] += 1


@dataclass(frozen=True)
class Verdict:
    acked: int
    lost: int
    unfinished: int
    wrong: int
    several_runs: int
    ran_twice: int
    changed_id: int
    kills: int
    unknown: int
    refused: int
    again_s: tuple[float, float]
    """From the kill to the first acknowledged call: median and maximum."""

    @property
    def broken(self) -> int:
        return self.lost + self.unfinished + self.wrong + self.several_runs + self.changed_id


def kill_again_and_again(fleet: ServedFleet, kills: int, *, least_acks: int = 0) -> Verdict:
    """Run the burst with its kills, then compare what was acknowledged with what the ledger holds."""
    rng = random.Random(SEED)
    killed = 0
    again: list[float] = []
    with fleet:
        version = fleet.request("GET", "/v1/services").json()["services"][0]["version"]
        with Burst(fleet) as burst:
            killed_at: float | None = None
            while killed < kills or len(burst.log.acked) < least_acks:
                burst.go()
                acked_at = burst.until_acked()
                if killed_at is not None:
                    again.append(acked_at - killed_at)
                time.sleep(rng.uniform(0.3, 1.0))  # the fault's random moment, not a wait for anything
                burst.hold()
                killed_at = time.monotonic()
                fleet.kill9()
                killed += 1
                fleet.restart()
        log = burst.log
        repeated = {number: fleet.post("tiny/double", {"n": number}) for number in log.unknown}
        fleet.until(lambda: _idle(fleet), "all jobs to end", timeout_s=60)
        fleet.terminate()
    names = {number: _id_of(number, version) for number in log.acked.keys() | repeated.keys()}
    books = audit(fleet.data_dir, names.values())
    return Verdict(
        acked=len(log.acked),
        lost=sum(names[number] not in books for number in log.acked),
        unfinished=sum(audited.job.state is not RunState.SUCCEEDED for audited in books.values()),
        wrong=sum(name in books and books[name].result != b"%d" % (2 * number) for number, name in names.items()),
        several_runs=sum(audited.job.run != 1 for audited in books.values()),
        ran_twice=sum(len(audited.attempts) > 1 for audited in books.values()),
        changed_id=sum(log.acked.get(number, name) != name for number, name in names.items())
        + sum(answer.json().get("job_id") != names[number] for number, answer in repeated.items()),
        kills=killed,
        unknown=len(log.unknown),
        refused=log.refused.total(),
        again_s=(round(statistics.median(again), 2), round(max(again), 2)),
    )


def _idle(fleet: ServedFleet) -> bool:
    status = fleet.status()
    return not (status["queued"] or status["running"])


def _id_of(number: int, version: str) -> str:
    return job_id(tenant="default", service="tiny", endpoint="double", version=version, params=b'{"n":%d}' % number)


def test_no_acknowledged_call_is_lost(serve: Serve, record_property: Record) -> None:
    kills, least_acks = (50, 40_000) if FULL else (5, 0)
    verdict = kill_again_and_again(serve(), kills, least_acks=least_acks)
    record_property("figures", str(verdict))
    assert verdict.acked > 20 * verdict.kills, "too few acknowledgements to say anything"
    assert verdict.broken == 0, verdict
    if FULL:  # a time: not in the short form, which shares the machine with other tests
        assert verdict.again_s[0] < READY_AGAIN_S, verdict


def test_the_checker_notices_an_ack_before_its_commit(serve: Serve, record_property: Record) -> None:
    verdict = kill_again_and_again(serve(twin="ack-before-commit"), 10 if FULL else 2)
    record_property("figures", str(verdict))
    assert verdict.lost > 0, verdict
