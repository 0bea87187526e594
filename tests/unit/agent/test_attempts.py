"""The agent's decisions, at their edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from dask_fleet.agent.attempts import (
    Attempt,
    choose_host,
    common_versions,
    due,
    verdict,
)
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import Outcome, Start


def start(seq: int = 1, timeout_s: float = 10.0) -> Start:
    return Start(seq, 1, 2, "job", "trial", "double", "v1", b"{}", timeout_s, 1000)


def succeeded() -> Outcome:
    return Outcome(1, 1, 2, AttemptState.SUCCEEDED, "w", 5, media_type="text/plain", digest="d", size=3, spool="s")


@dataclass
class Host:
    load: int
    threads: int = 1
    versions: dict[str, str] = field(default_factory=lambda: {"trial": "v1"})

    def takes(self, start: Start) -> bool:
        return self.load < self.threads and self.versions.get(start.service) == start.version


class TestChoose:
    def test_the_least_loaded_that_can(self) -> None:
        hosts = [Host(2, 4), Host(1, 4), Host(0, 4, {}), Host(3, 4)]
        assert choose_host(hosts, start()) is hosts[1]

    def test_none_when_all_are_full_or_have_another_version(self) -> None:
        assert choose_host([Host(1), Host(0, versions={"trial": "v2"})], start()) is None
        assert choose_host([], start()) is None


class TestTime:
    @pytest.mark.parametrize(("now", "late"), [(109.9, False), (110.0, True), (110.1, True)])
    def test_the_time_out_counts_from_the_placing(self, now: float, *, late: bool) -> None:
        attempt = Attempt(start(timeout_s=10.0))
        assert due([attempt], 1e9) == ([], [])  # not placed: its time has not begun
        attempt.placed(100.0)
        assert due([attempt], now) == ([attempt] if late else [], [])

    @pytest.mark.parametrize(("now", "stuck"), [(114.9, False), (115.0, True), (115.1, True)])
    def test_the_grace_counts_from_the_time_out(self, now: float, *, stuck: bool) -> None:
        attempt = Attempt(start())
        attempt.placed(100.0)
        attempt.time_out(110.0, 5.0)
        assert due([attempt], now) == ([], [attempt] if stuck else [])
        assert attempt.next_alarm == 115.0

    def test_a_repeated_cancel_never_prolongs_the_grace(self) -> None:
        attempt = Attempt(start())
        attempt.placed(0.0)
        attempt.cancel(1.0, 2.0)
        attempt.cancel(2.5, 10.0)
        assert attempt.kill_at == 3.0

    def test_a_cancel_does_not_outlast_the_time_out(self) -> None:
        attempt = Attempt(start(timeout_s=10.0))
        attempt.placed(0.0)
        attempt.cancel(9.0, 100.0)
        assert attempt.next_alarm == 10.0
        attempt.time_out(10.0, 5.0)
        assert attempt.kill_at == 15.0

    def test_nothing_is_due_without_a_limit(self) -> None:
        assert Attempt(start()).next_alarm == math.inf


class TestVerdict:
    def test_in_time_it_stands(self) -> None:
        outcome = succeeded()
        assert verdict(Attempt(start()), outcome) is outcome

    def test_after_the_time_out_a_success_is_none(self) -> None:
        attempt = Attempt(start())
        attempt.time_out(0.0, 1.0)
        found = verdict(attempt, succeeded())
        assert found.state is AttemptState.FAILED
        assert found.failure is not None
        assert found.failure.cause is Cause.TIMEOUT
        assert "10 s" in found.failure.message
        assert (found.spool, found.body, found.digest, found.media_type) == (None, None, "", "")

    @pytest.mark.parametrize("timed_out", [False, True])
    def test_after_a_cancel_every_end_is_cancelled(self, *, timed_out: bool) -> None:
        attempt = Attempt(start())
        attempt.cancel(0.0, 1.0)
        if timed_out:
            attempt.time_out(0.0, 1.0)
        failed = Outcome(1, 1, 2, AttemptState.FAILED, "w", 5, failure=Failure(cause=Cause.EXCEPTION, message="x"))
        for outcome in (succeeded(), failed):
            assert verdict(attempt, outcome).state is AttemptState.CANCELLED
            assert verdict(attempt, outcome).failure is None


def test_only_versions_that_all_have_count() -> None:
    assert common_versions([]) == {}
    assert common_versions([{"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "1"}]) == {"a": "1"}
