"""Versions of Dask Fleet take turns on one data folder under load, and afterwards it is counted what became of the calls."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from tests.promises.form import FULL
from tests.promises.ledger_audit import Audited, audit
from tests.promises.versions import COMMAND

from dask_fleet.model.states import RunState
from dask_fleet.testing.served import ServedFleet

SERVICE = Path(__file__).with_name("service_tiny.py")
THREADS = 4 if FULL else 2
ACKS_A_TURN = 500 if FULL else 60


class Turn(NamedTuple):
    """How the version at work ends, and which comes after it."""

    version: str
    site: Path
    kill: bool = False
    """Whether the server is killed (-9) instead of asked to end."""


class VersionedFleet(ServedFleet):
    """A fleet whose version can be changed between two starts."""

    def __init__(self, folder: Path, *, nworkers: int = 1) -> None:
        super().__init__(
            [SERVICE], folder / "data", args=("--nworkers", str(nworkers), "--drain-timeout", "2s"),
            env={"TINY_STARTS": str(folder / "starts")}, command=COMMAND,
        )  # fmt: skip
        self.starts = folder / "starts"

    def use(self, site: Path) -> Self:
        """Let the next start be of the version installed there."""
        self._env["PYTHONPATH"] = str(site)
        if "spare_schedulers" in (site / "dask_fleet" / "config" / "settings.py").read_text("utf-8"):
            self._env["FLEET_SPARE_SCHEDULERS"] = "0"
        else:  # a setting that it does not know it refuses
            self._env.pop("FLEET_SPARE_SCHEDULERS", None)
        return self

    @property
    def version(self) -> str:
        """The version that answers."""
        return str(self.status()["version"])

    @property
    def gate(self) -> Path:
        """Opens for all gated jobs when it is there."""
        return Path(f"{self.starts}.gate")


class Load:
    """Clients that post distinct calls without a pause, whatever the server is doing, and remember what they were told."""

    def __init__(self, fleet: ServedFleet, *, begin_at: int = 0) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._next = begin_at
        self._stop = threading.Event()
        self.acked: dict[int, str] = {}
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        """Requests whose connection was refused or cut: the server was away."""
        self._threads = [threading.Thread(target=self._post_all, name=f"load-{number}") for number in range(THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive()

    def _post_all(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = self._next
                self._next += 1
            try:
                answer = self._fleet.post("tiny/double", {"n": number})
            except (OSError, http.client.HTTPException):
                self.broken += 1
                self._stop.wait(0.05)
                continue
            self.statuses[answer.status] += 1
            if answer.status in {200, 202}:
                self.acked[number] = answer.json()["job_id"]
                self._stop.wait(0.0 if FULL else 0.01)  # in its short form it shares the machine with other tests
            else:
                self._stop.wait(0.05)


@dataclass(frozen=True)
class Verdict:
    acked: int
    statuses: dict[int, int]
    away: int
    versions: list[str]
    starts_s: list[float]
    """How long each took until it was ready."""
    lost: list[int]
    wrong: list[int]
    """Not succeeded, run more than once, or with another result than twice the number."""


def take_turns(fleet: VersionedFleet, turns: Sequence[Turn], *, begin_at: int = 0) -> Verdict:
    """Serve one version after the other under load, then compare what was acknowledged with what the ledger holds."""
    rng = random.Random(7)
    with fleet:
        seen, starts = [fleet.version], list[float]()
        with Load(fleet, begin_at=begin_at) as load:
            for turn in turns:
                want = len(load.acked) + ACKS_A_TURN
                fleet.until(lambda want=want: len(load.acked) >= want, "calls to be accepted", timeout_s=60)
                time.sleep(rng.uniform(0.0, 0.3))  # the moment is to be any
                if turn.kill:
                    fleet.kill9()
                else:
                    assert fleet.terminate() == 0
                began = time.monotonic()
                fleet.use(turn.site).start()
                starts.append(round(time.monotonic() - began, 1))
                seen.append(fleet.version)
            want = len(load.acked) + ACKS_A_TURN
            fleet.until(lambda: len(load.acked) >= want, "calls to be accepted", timeout_s=60)
        fleet.gate.touch()
        fleet.until(lambda: not (fleet.status()["queued"] or fleet.status()["running"]), "all jobs to end", timeout_s=90)
        fleet.terminate()
    books = audit(fleet.data_dir, load.acked.values())
    told = {number: books.get(job_id) for number, job_id in load.acked.items()}
    return Verdict(
        acked=len(told),
        statuses=dict(load.statuses),
        away=load.broken,
        versions=seen,
        starts_s=starts,
        lost=[number for number, found in told.items() if found is None],
        wrong=[number for number, found in told.items() if found is not None and not _is_right(number, found)],
    )


def _is_right(number: int, found: Audited) -> bool:
    return (found.job.state, found.job.run, found.result) == (RunState.SUCCEEDED, 1, b"%d" % (2 * number))


