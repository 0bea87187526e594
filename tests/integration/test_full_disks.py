"""Full disks: nothing is accepted that is not on disk, nothing succeeds without its bytes, all goes on with room again."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.core_fleet import CoreFleet
from tests.integration.small_disk import SmallDisk, small_disk

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "data", size_bytes=24 * MIB) as found:
        yield found


def readiness(fleet: CoreFleet) -> tuple[int, str]:
    answer = fleet.request("GET", "/readyz")
    return answer.status, answer.body.decode()


def test_a_full_ledger_refuses_and_reads_and_goes_on_by_itself(tmp_path: Path, disk: SmallDisk) -> None:
    with CoreFleet(tmp_path, args=("--nworkers", "2")) as fleet:
        kept = fleet.post("core/quick", {"name": "before"}, wait=20).json()
        assert kept["status"] == "succeeded"
        held = fleet.post("core/gated", {"name": "held"}).json()["job_id"]
        fleet.until_started("held")
        disk.fill()

        accepted: list[str] = []

        def refused() -> dict[str, object] | None:
            answer = fleet.post("core/quick", {"name": f"full-{len(accepted)}-" + "x" * 20_000})
            if answer.status == 507:
                assert int(answer.headers["retry-after"]) >= 1
                document: dict[str, object] = answer.json()
                return document
            assert answer.status == 202  # there was room left in what the log had already taken
            accepted.append(answer.json()["job_id"])
            return None

        problem = fleet.until(refused, "the ledger to be full")
        assert problem["code"] == "ledger_full"
        assert "nothing was accepted" in str(problem["detail"])
        assert readiness(fleet) == (503, "not ready: the ledger's disk is full")
        assert fleet.job(kept["job_id"])["result"] == "before"
        assert fleet.job(held)["status"] == "running"
        refused_name = f"full-{len(accepted)}-" + "x" * 20_000
        fleet.open_gate("held")
        assert fleet.job(held, wait=1)["status"] == "running"  # its outcome waits for room

        disk.make_room()
        fleet.until(lambda: readiness(fleet) == (200, "ready"), "the server to be ready again")
        ended = fleet.ended(held)
        assert (ended["status"], ended["attempt"], ended["result"], fleet.starts("held")) == ("succeeded", 1, "held", 1)
        for job_id in accepted:
            assert fleet.ended(job_id)["status"] == "succeeded"
        assert fleet.starts(refused_name) == 0
        again = fleet.post("core/quick", {"name": refused_name}, wait=20).json()
        assert (again["status"], again["run"]) == ("succeeded", 1)
        fleet.terminate()
        with sqlite3.connect(disk.path / "ledger.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_a_full_result_store_fails_the_job_and_frees_the_worker(tmp_path: Path, disk: SmallDisk) -> None:
    with CoreFleet(tmp_path) as fleet:
        assert fleet.post("core/quick", {"name": "before"}, wait=20).json()["status"] == "succeeded"
        disk.fill(but_bytes=2 * MIB)
        body = {"name": "large", "size": 6 * MIB}
        job_id = fleet.post("core/large", body).json()["job_id"]
        failed = fleet.ended(job_id)
        assert (failed["status"], failed["error"]["cause"]) == ("failed", "result_store_full")
        assert failed["attempt"] == 4  # the disk's fault, not the function's: it was tried again
        assert fleet.request("GET", f"/v1/jobs/{job_id}/result").status != 200
        for folder in ("spool", "results"):
            assert [path for path in (disk.path / folder).rglob("*") if path.is_file()] == []
        assert fleet.post("core/quick", {"name": "small"}, wait=20).json()["status"] == "succeeded"  # the worker is free
        assert readiness(fleet) == (200, "ready")

        disk.make_room()
        again = fleet.post("core/large", body).json()
        assert (again["job_id"], again["run"]) == (job_id, 2)
        assert fleet.ended(job_id)["status"] == "succeeded"
        found = fleet.request("GET", f"/v1/jobs/{job_id}/result")
        assert found.status == 200
        assert hashlib.sha256(found.body).hexdigest() == hashlib.sha256(b"\x07" * (6 * MIB)).hexdigest()
