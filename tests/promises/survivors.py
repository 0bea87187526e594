"""A fleet whose jobs outlast what happens to their processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.users import add_users

from dask_fleet.testing.served import ServedFleet

SERVICE = Path(__file__).with_name("service_survival.py")
USERS = 32
"""So many take turns that none of them has ten processes killed in a minute and is paused: that is another promise."""


class Survivors:
    """A fleet whose jobs outlast processes, and the folder in which they note their starts."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder / "noted"
        self._folder.mkdir(parents=True)
        env = {"SURVIVAL": str(self._folder)}
        self.fleet = ServedFleet([SERVICE], folder / "data", env=env, **options)
        self._tokens = list(add_users(self.fleet.data_dir, (f"user{number}" for number in range(USERS))).values())

    def start(self, *numbers: int) -> list[str]:
        """Start jobs of these numbers, and return their ids when all of them run."""
        ids = [
            self.fleet.post("survival/gated", {"n": n}, token=self._tokens[n % USERS]).json()["job_id"] for n in numbers
        ]
        self.until_started(numbers, 1)
        return ids

    def until_started(self, numbers: Iterable[int], times: int) -> None:
        for n in numbers:
            self.fleet.until(lambda n=n: len(self.starts(n)) == times, f"start {times} of job {n}", timeout_s=60)

    def starts(self, n: int) -> list[int]:
        path = self._folder / f"{n}.starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def last_start(self, n: int) -> float:
        """Return when the job of this number began last, in seconds since 1970."""
        return (self._folder / f"{n}.starts").stat().st_mtime

    def open(self, *numbers: int) -> None:
        """Let the functions of these jobs return."""
        for n in numbers:
            (self._folder / f"{n}.gate").touch()

    def end(self, numbers: Iterable[int], ids: Iterable[str], *, attempt: int) -> None:
        """Let jobs end, and check that they did so in that attempt."""
        numbers = list(numbers)
        self.open(*numbers)
        for n, job_id in zip(numbers, ids, strict=True):
            job = ended(self.fleet, job_id)
            assert (job["status"], job["result"], job["attempt"]) == ("succeeded", 3 * n, attempt), job


def ended(fleet: ServedFleet, job_id: str, *, timeout_s: float = 90.0) -> dict[str, Any]:
    found: dict[str, Any] = fleet.until(
        lambda: (job := fleet.job(job_id, wait=2))["finished_at"] and job, "the job to end", timeout_s=timeout_s
    )
    return found


def living(fleet: ServedFleet) -> set[int]:
    """Return the pids of a fleet's processes."""
    return {process.pid for process in fleet.processes()}
