"""P5: one bad job hurts only itself. Poison, memory hogs and endless jobs among many good ones."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.promises.form import FULL, Record, Serve
from tests.users import add_users

from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

JOBS = 2_000 if FULL else 200
EACH_KIND = 20 if FULL else 3
HOW_MANY = {"poison": max(EACH_KIND, 5), "hog": EACH_KIND, "infinite": EACH_KIND}
"""Of the bad ones. There are five ways of killing one's worker process."""
BAD_USERS = max(HOW_MANY.values())
"""As many as it takes for none of them to kill ten workers a minute: that they would be paused is another promise."""
SEED = 20261121
MEMORY_LIMIT = "400MiB"
HERE = Path(__file__).parent
EXPECTED_CAUSE = {"poison": "worker_died", "hog": "memory_limit", "infinite": "timeout"}


@dataclass(frozen=True)
class Verdict:
    """What became of good and bad."""

    innocents: int
    innocents_right: int
    bad: int
    bad_failed_rightly: int
    most_deaths: int
    """Of worker processes under one job that kills them."""
    peaks_told: int
    """Memory hogs whose record has the peak."""
    workers_left: int
    """Slots at the end: as many as at the beginning."""


def plan() -> list[tuple[str, int]]:
    """Return the jobs in the order in which they are posted: endpoint and number."""
    bad = [(kind, number) for kind, count in HOW_MANY.items() for number in range(count)]
    jobs = bad + [("innocent", number) for number in range(JOBS - len(bad))]
    random.Random(SEED).shuffle(jobs)
    return jobs


def blast(fleet: ServedFleet, tokens: dict[str, str]) -> Verdict:
    with fleet:
        slots = fleet.status()["agents"][0]["slots"]
        jobs = plan()
        ids: dict[str, tuple[str, int]] = {}
        for number, (kind, n) in enumerate(jobs):
            user = f"bad{n % BAD_USERS}" if kind != "innocent" else f"good{number % 5}"
            ids[fleet.post(f"blast/{kind}", {"n": n}, token=tokens[user]).json()["job_id"]] = (kind, n)
        assert len(ids) == JOBS

        def left() -> bool:
            status = fleet.status()
            return status["queued"] + status["running"] == 0

        fleet.until(left, "all jobs to end", timeout_s=1_500 if FULL else 240)
        fleet.until(lambda: fleet.status()["agents"][0]["slots"] == slots, "all workers to be back", timeout_s=30)
        ended = {job_id: fleet.job(job_id) for job_id in ids}
        deaths = {
            job_id: sum(_is_death(attempt) for attempt in _attempts(fleet, job_id))
            for job_id, (kind, _) in ids.items()
            if kind in {"poison", "hog"}
        }
        counted = Counter[str]()
        for job_id, (kind, n) in ids.items():
            job = ended[job_id]
            if kind == "innocent":
                counted["right"] += job["status"] == "succeeded" and job["result"] == 3 * n
            else:
                failure = job["error"] or {}
                counted["failed"] += job["status"] == "failed" and failure.get("cause") == EXPECTED_CAUSE[kind]
                counted["peaks"] += kind == "hog" and (failure.get("peak_bytes") or 0) > 300 << 20
        fleet.terminate()
    return Verdict(
        innocents=JOBS - sum(HOW_MANY.values()),
        innocents_right=counted["right"],
        bad=sum(HOW_MANY.values()),
        bad_failed_rightly=counted["failed"],
        most_deaths=max(deaths.values()),
        peaks_told=counted["peaks"],
        workers_left=slots,
    )


def _attempts(fleet: ServedFleet, job_id: str) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = fleet.request("GET", f"/v1/jobs/{job_id}/attempts").json()["attempts"]
    return attempts


def _is_death(attempt: dict[str, Any]) -> bool:
    failure = attempt["error"] or {}
    return attempt["status"] == "lost" and failure.get("cause") in {"worker_died", "memory_limit", "stopped"}


def fleet_and_tokens(serve: Serve, tmp_path: Path, **options: Any) -> tuple[ServedFleet, dict[str, str]]:
    users = [f"good{number}" for number in range(5)] + [f"bad{number}" for number in range(BAD_USERS)]
    tokens = add_users(tmp_path / "data", users)
    args = ("--nworkers", "2", "--nthreads", "4", "--memory-limit", MEMORY_LIMIT)
    return serve(service=HERE / "service_blast.py", args=args, **options), tokens


def test_one_bad_job_hurts_only_itself(serve: Serve, tmp_path: Path, record_property: Record) -> None:
    verdict = blast(*fleet_and_tokens(serve, tmp_path))
    record_property("figures", str(verdict))
    assert verdict.innocents_right == verdict.innocents
    assert verdict.bad_failed_rightly == verdict.bad
    assert verdict.most_deaths <= 3
    assert verdict.peaks_told == EACH_KIND


def test_the_checker_notices_a_shared_fate(serve: Serve, tmp_path: Path, record_property: Record) -> None:
    verdict = blast(*fleet_and_tokens(serve, tmp_path, twin="fail-together"))
    record_property("figures", str(verdict))
    assert verdict.innocents_right < verdict.innocents
