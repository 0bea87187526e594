"""A fleet of the core service, for the integration tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dask_fleet.testing.served import ServedFleet

CORE = Path(__file__).with_name("core_service.py")


class CoreFleet(ServedFleet):
    """A fleet of the core service, with its gates and its book of starts."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._starts = folder / "starts"
        options.setdefault("args", ("--nworkers", "1"))
        env = {"CORE_STARTS": str(self._starts), **options.pop("env", {})}
        super().__init__([CORE], folder / "data", env=env, **options)

    def starts(self, name: str) -> int:
        """Return how often the function was started with that name."""
        return self._starts.read_text().splitlines().count(name) if self._starts.exists() else 0

    def order(self) -> list[str]:
        """Return the names in order of their starts."""
        return self._starts.read_text().splitlines() if self._starts.exists() else []

    def until_started(self, name: str, times: int = 1, *, timeout_s: float = 20.0) -> None:
        self.until(lambda: self.starts(name) >= times, f"start {times} of {name}", timeout_s=timeout_s)

    def open_gate(self, name: str) -> None:
        self._starts.with_name(name).touch()

    def shut_gate(self, name: str) -> None:
        self._starts.with_name(name).unlink()

    def open_all_gates(self) -> None:
        """Let everything end that a test has left running, but for what has to be cancelled."""
        for name in set(self.order()):
            self.open_gate(name)
        self.until(lambda: not (self.status()["queued"] or self.status()["running"]), "all jobs to end")

    def ended(self, job_id: str, *, timeout_s: float = 40.0) -> dict[str, Any]:
        """Return the document of a job once it has ended."""
        found: dict[str, Any] = self.until(
            lambda: self._if_ended(self.job(job_id, wait=1)), "the job to end", timeout_s=timeout_s
        )
        return found

    @staticmethod
    def _if_ended(job: dict[str, Any]) -> dict[str, Any] | None:
        return job if job["status"] in {"succeeded", "failed", "cancelled", "expired"} else None

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.request("GET", f"/v1/jobs/{job_id}/attempts").json()
        found: list[dict[str, Any]] = answer["attempts"] if isinstance(answer, dict) else answer
        return found

    def events(self, job_id: str) -> list[str]:
        """Return the kinds of the events so far of a job that has ended."""
        text = self.request("GET", f"/v1/jobs/{job_id}/events").body.decode()
        return [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]

    def states(self, job_id: str) -> list[str]:
        return [attempt["status"] for attempt in self.attempts(job_id)]

