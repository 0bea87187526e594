"""An upgrade from a version that there really was loses nothing, nor does taking it back, however the servers end.

The old one has another schema and another protocol, its own SQL, its own agents: nothing of it was made for this test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.promises.form import FULL, Record
from tests.promises.ledger_audit import audit
from tests.promises.turns import ACKS_A_TURN, Turn, VersionedFleet, take_turns
from tests.promises.versions import PREDECESSOR, has_commit, install

from dask_fleet import __version__
from dask_fleet.model.states import RunState

pytestmark = [
    pytest.mark.promise,
    pytest.mark.skipif(not FULL, reason="its ledger is migrated and read in test_schema_1.py; its servers take a while"),
    pytest.mark.skipif(FULL and not has_commit(PREDECESSOR), reason=f"no git history with {PREDECESSOR[:7]} here"),
]

OLD = "0.0.1"


def test_upgrades_from_a_real_predecessor_and_back_lose_nothing(tmp_path: Path, record_property: Record) -> None:
    old = install(tmp_path / "old", commit=PREDECESSOR, version=OLD)
    new = install(tmp_path / "new")
    fleet = VersionedFleet(tmp_path, nworkers=2)
    upgrade, back = Turn(__version__, new), Turn(OLD, old)
    killed_upgrade, killed_back = upgrade._replace(kill=True), back._replace(kill=True)
    # In two parts, for each time that the old one is interrupted it charges the long job with it: three times at most.
    parts = {OLD: [upgrade, back, killed_upgrade], __version__: [killed_back, killed_upgrade]}
    for number, (first, turns) in enumerate(parts.items()):
        with fleet.use(old if first == OLD else new):
            fleet.gate.unlink(missing_ok=True)
            done = fleet.post("tiny/double", {"n": 10_000_000 + number}, wait=30).json()
            long = fleet.post("tiny/gated", {"n": number}).json()["job_id"]
            fleet.until(lambda n=number: _has_started(fleet, n), "the long job to start")
            fleet.terminate()
        verdict = take_turns(fleet, turns, begin_at=number * 1_000_000)
        record_property("figures", str(verdict))
        assert verdict.versions == [first, *(turn.version for turn in turns)]
        assert set(verdict.statuses) <= {200, 202, 503}, verdict
        assert verdict.acked >= len(turns) * ACKS_A_TURN
        assert (verdict.lost, verdict.wrong) == ([], [])
        assert max(verdict.starts_s) < 30, verdict  # the agent of before stayed for its orphan time-out, a minute
        books = audit(fleet.data_dir, [done["job_id"], long])
        assert (books[done["job_id"]].job.run, books[done["job_id"]].result) == (1, b"%d" % (2 * (10_000_000 + number)))
        assert (books[long].job.state, books[long].job.run) == (RunState.SUCCEEDED, 1)


def _has_started(fleet: VersionedFleet, number: int) -> bool:
    return fleet.starts.exists() and str(number) in fleet.starts.read_text().split()
