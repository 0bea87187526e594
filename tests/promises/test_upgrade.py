"""An upgrade under load loses nothing, nor does taking it back: wheels of two versions take turns on one data folder."""

from __future__ import annotations

import http.client
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from tests.promises.form import FULL, Record
from tests.promises.ledger_audit import Audited, audit
from tests.promises.versions import COMMAND, install

from dask_fleet import __version__
from dask_fleet.model.states import RunState
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

NEWER = "99.0.0"
ADDITIVE = """
ALTER TABLE jobs ADD COLUMN newer TEXT NOT NULL DEFAULT 'unknown';
CREATE TABLE newer (job_seq INTEGER PRIMARY KEY, what TEXT) STRICT;
CREATE INDEX jobs_newer ON jobs (newer);
"""
SERVICE = Path(__file__).with_name("service_tiny.py")
THREADS = 4 if FULL else 2
ROUNDS = 6 if FULL else 1
ACKS_A_TURN = 500 if FULL else 60


class VersionedFleet(ServedFleet):
    """A fleet whose version can be changed between two starts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            [SERVICE], folder / "data", args=("--nworkers", "1", "--drain-timeout", "2s"),
            env={"TINY_STARTS": str(folder / "starts")}, command=COMMAND,
        )  # fmt: skip
        self.starts = folder / "starts"

    def use(self, site: Path) -> Self:
        """Let the next start be of the version installed there."""
        self._env["PYTHONPATH"] = str(site)
        return self

    @property
    def version(self) -> str:
        """The version that answers."""
        return str(self.status()["version"])


class Load:
    """Clients that post distinct calls without a pause, whatever the server is doing, and remember what they were told."""

    def __init__(self, fleet: ServedFleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._next = 0
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


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("versions")
    return {
        __version__: install(folder / "present"),
        NEWER: install(folder / "newer", version=NEWER, migration=ADDITIVE),
    }


@dataclass(frozen=True)
class Verdict:
    acked: int
    statuses: dict[int, int]
    away: int
    versions: list[str]
    lost: list[int]
    wrong: list[int]
    """Not succeeded, run more than once, or with another result than twice the number."""


def take_turns(fleet: VersionedFleet, sites: Sequence[tuple[str, Path]]) -> Verdict:
    """Serve one version after the other under load, then compare what was acknowledged with what the ledger holds."""
    rng = random.Random(7)
    with fleet:
        seen = [fleet.version]
        with Load(fleet) as load:
            for _, site in sites:
                want = len(load.acked) + ACKS_A_TURN
                fleet.until(lambda want=want: len(load.acked) >= want, "calls to be accepted", timeout_s=60)
                time.sleep(rng.uniform(0.0, 0.3))  # the moment is to be any
                assert fleet.terminate() == 0
                fleet.use(site).start()
                seen.append(fleet.version)
            want = len(load.acked) + ACKS_A_TURN
            fleet.until(lambda: len(load.acked) >= want, "calls to be accepted", timeout_s=60)
        Path(f"{fleet.starts}.gate").touch()
        fleet.until(lambda: not (fleet.status()["queued"] or fleet.status()["running"]), "all jobs to end", timeout_s=90)
        fleet.terminate()
    books = audit(fleet.data_dir, load.acked.values())
    told = {number: books.get(job_id) for number, job_id in load.acked.items()}
    return Verdict(
        acked=len(told),
        statuses=dict(load.statuses),
        away=load.broken,
        versions=seen,
        lost=[number for number, found in told.items() if found is None],
        wrong=[number for number, found in told.items() if found is not None and not _is_right(number, found)],
    )


def _is_right(number: int, found: Audited) -> bool:
    return (found.job.state, found.job.run, found.result) == (RunState.SUCCEEDED, 1, b"%d" % (2 * number))


def test_an_upgrade_and_a_rollback_under_load_lose_nothing(
    tmp_path: Path, sites: dict[str, Path], record_property: Record
) -> None:
    fleet = VersionedFleet(tmp_path).use(sites[__version__])
    with fleet:  # work of the first version, of which one job is still at it when the next comes
        first = fleet.post("tiny/double", {"n": 10_000_000}, wait=30).json()
        gated = fleet.post("tiny/gated", {"n": 1}).json()["job_id"]
        fleet.until(fleet.starts.exists, "the gated job to start")
        fleet.terminate()
    verdict = take_turns(fleet, [(name, sites[name]) for name in (NEWER, __version__)] * ROUNDS)
    record_property("figures", str(verdict))
    assert verdict.versions == [__version__, *[NEWER, __version__] * ROUNDS]
    assert set(verdict.statuses) <= {200, 202, 503}, verdict
    assert verdict.acked >= 3 * ACKS_A_TURN
    assert (verdict.lost, verdict.wrong) == ([], [])
    with closing(sqlite3.connect(fleet.data_dir / "ledger.db")) as database:
        assert "newer" in {row[1] for row in database.execute("PRAGMA table_info(jobs)")}
    before = audit(fleet.data_dir, [first["job_id"], gated])
    assert (before[first["job_id"]].job.run, before[first["job_id"]].result) == (1, b"20000000")
    assert before[gated].job.state is RunState.SUCCEEDED


def test_the_checker_notices_a_migration_that_loses_jobs(
    tmp_path: Path, sites: dict[str, Path], record_property: Record
) -> None:
    # Not the last: its number would be given again, to a job that then finds the attempts of another.
    loses = "DELETE FROM jobs WHERE seq % 7 = 0 AND seq < (SELECT max(seq) FROM jobs);\n"
    spoilt = install(tmp_path / "spoilt", version="98.0.0", migration=loses)
    verdict = take_turns(VersionedFleet(tmp_path).use(sites[__version__]), [("98.0.0", spoilt)])
    record_property("figures", f"{len(verdict.lost)} of {verdict.acked} lost")
    assert verdict.lost, verdict


@pytest.mark.skipif(not FULL, reason="the refusal itself is tested with the agent's link")
def test_an_agent_of_another_protocol_is_refused_and_replaced(tmp_path: Path, sites: dict[str, Path]) -> None:
    other = install(tmp_path / "other", version="99.1.0", migration=ADDITIVE, protocol=1_000)
    fleet = VersionedFleet(tmp_path).use(sites[__version__])
    with fleet:
        assert fleet.post("tiny/double", {"n": 1}, wait=30).json()["result"] == 2
        old = fleet.agent_pid()
        fleet.kill9()  # the agent lives on, and comes home to a server it does not understand
        fleet.use(other).start()
        assert fleet.version == "99.1.0"
        assert fleet.post("tiny/double", {"n": 2}, wait=30).json()["result"] == 4
        assert fleet.agent_pid() != old
        assert "this server 1000: install the same version of dask-fleet on both" in fleet.logs()
