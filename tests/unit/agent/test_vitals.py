"""What /proc says of a process, and how often it is asked."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_fleet.agent.vitals import Vitals, next_look_s, parse_stat

MIB = 1 << 20
_ENTERS = b"7 (a) R b) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 3 0 5 900 256 18446744073709551615 1 1 0\n"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has 64 MiB, as it says, and then waits."""
    code = "b = bytearray(64 << 20); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_name_may_hold_anything() -> None:
    sample = parse_stat(_ENTERS)
    assert (sample.state, sample.stopped, sample.rss_bytes % 256) == ("S", False, 0)
    assert sample.rss_bytes >= 256 * 4096


def test_memory_and_its_peak(child: subprocess.Popen[bytes]) -> None:
    vitals = Vitals(child.pid)
    seen = vitals.look(1.0)
    assert seen is not None
    sample, before, _ = seen
    assert before is None
    assert 64 * MIB <= sample.rss_bytes < 256 * MIB
    assert vitals.ask_peak() >= vitals.peak_bytes >= sample.rss_bytes * 0.9
    vitals.close()
    vitals.close()


def test_a_stop_is_seen_and_since_when(child: subprocess.Popen[bytes]) -> None:
    vitals = Vitals(child.pid)
    child.send_signal(signal.SIGSTOP)
    give_up = time.monotonic() + 10
    while vitals.stopped_since is None and time.monotonic() < give_up:
        vitals.look(5.0)
    vitals.look(6.0)
    assert vitals.stopped_since == 5.0
    child.send_signal(signal.SIGCONT)
    while vitals.stopped_since is not None and time.monotonic() < give_up:
        vitals.look(7.0)
    assert vitals.stopped_since is None
    vitals.close()


def test_one_that_has_ended_has_none(child: subprocess.Popen[bytes]) -> None:
    vitals = Vitals(child.pid)
    child.kill()
    child.wait()
    assert not Path(f"/proc/{child.pid}").exists()
    assert vitals.look(1.0) is None
    vitals.close()
    assert vitals.look(1.0) is None
    assert Vitals(child.pid).look(1.0) is None


class TestHowOften:
    @pytest.mark.parametrize(
        ("rss", "growth", "limit", "wait"),
        [
            (900, 1e9, 0, 0.5),  # no limit
            (100, 0.0, 1000, 0.5),
            (100, -5e3, 1000, 0.5),
            (600, 0.0, 1000, 0.1),
            (100, 850.0, 1000, 1 / 3),  # there in a second: three looks until then
            (100, 1e9, 1000, 0.01),  # never in a hot loop
            (2000, 1.0, 1000, 0.01),
        ],
    )
    def test_it_depends(self, rss: int, growth: float, limit: int, wait: float) -> None:
        assert next_look_s(rss, growth, limit, busy=False) == pytest.approx(wait)

    @pytest.mark.parametrize(
        ("rss", "growth", "limit", "wait"),
        [
            (200, 0.0, 16_384, 0.5),  # far away, however fast
            (124, 0.0, 400, 0.125),  # 256 MiB of room: there in an eighth of a second, if it begins now
            (124, 512.0, 400, 0.125),
            (124, 1024.0, 400, 1 / 12),
            (370, 0.0, 400, 0.02),
            (370, 100.0, 400, 0.02),
            (370, 1e6, 400, 0.01),
            (400, 0.0, 400, 0.02),
        ],
    )
    def test_what_is_busy_could_begin_to_fill_memory_any_moment(
        self, rss: int, growth: float, limit: int, wait: float
    ) -> None:
        assert next_look_s(rss * MIB, growth * MIB, limit * MIB) == pytest.approx(wait)
