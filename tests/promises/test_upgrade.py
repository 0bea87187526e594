"""An upgrade under load loses nothing, nor does taking it back: wheels of two versions take turns on one data folder."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.promises.form import FULL, Record
from tests.promises.ledger_audit import audit
from tests.promises.turns import ACKS_A_TURN, Turn, VersionedFleet, take_turns
from tests.promises.versions import install

from dask_fleet import __version__
from dask_fleet.model.states import RunState

pytestmark = pytest.mark.promise

NEWER = "99.0.0"
ADDITIVE = """
ALTER TABLE jobs ADD COLUMN newer TEXT NOT NULL DEFAULT 'unknown';
CREATE TABLE newer (job_seq INTEGER PRIMARY KEY, what TEXT) STRICT;
CREATE INDEX jobs_newer ON jobs (newer);
"""
ROUNDS = 6 if FULL else 1


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("versions")
    return {
        __version__: install(folder / "present"),
        NEWER: install(folder / "newer", version=NEWER, migration=ADDITIVE),
    }


def test_an_upgrade_and_a_rollback_under_load_lose_nothing(
    tmp_path: Path, sites: dict[str, Path], record_property: Record
) -> None:
    fleet = VersionedFleet(tmp_path).use(sites[__version__])
    with fleet:  # work of the first version, of which one job is still at it when the next comes
        first = fleet.post("tiny/double", {"n": 10_000_000}, wait=30).json()
        gated = fleet.post("tiny/gated", {"n": 1}).json()["job_id"]
        fleet.until(fleet.starts.exists, "the gated job to start")
        fleet.terminate()
    verdict = take_turns(fleet, [Turn(name, sites[name]) for name in (NEWER, __version__)] * ROUNDS)
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
    verdict = take_turns(VersionedFleet(tmp_path).use(sites[__version__]), [Turn("98.0.0", spoilt)])
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
