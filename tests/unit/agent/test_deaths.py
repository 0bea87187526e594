"""What the end of a worker process is called, and whose fault it is."""

from __future__ import annotations

import signal

import pytest
from tests.unit.agent.test_attempts import start

from dask_fleet.agent import deaths
from dask_fleet.agent.attempts import Attempt
from dask_fleet.agent.deaths import Death, describe_exit, for_memory, of_exit, readable, verdict_on_death
from dask_fleet.model.failure import Blame, Cause
from dask_fleet.model.states import AttemptState

GIB = 1 << 30
KILLED = -int(signal.SIGKILL)
DIED = Death(cause=Cause.WORKER_DIED, how="was killed by SIGSEGV", signal="SIGSEGV")


def exit_with(code: int | None, *, last: float = 0.1, limit: int = GIB, oom: bool = False) -> Death:
    return of_exit(code, last_bytes=int(last * GIB), peak_bytes=int(last * GIB), limit_bytes=limit, oom_killed=oom)


class TestCause:
    def test_an_exit_or_a_signal_is_what_it_is(self) -> None:
        assert exit_with(7) == Death(cause=Cause.WORKER_DIED, how="ended with exit code 7", exit_code=7)
        assert exit_with(-11) == DIED
        assert exit_with(KILLED).cause is Cause.WORKER_DIED
        assert exit_with(KILLED, oom=True).signal == "SIGKILL"
        assert exit_with(-63).how == "was killed by signal 63"  # a real-time one without a name
        assert exit_with(-63).signal == "63"

    def test_with_the_forkserver_all_of_it_are_suspects_however_few_were_in_the_process(self) -> None:
        death = exit_with(None, last=0.99, oom=True)
        assert death.cause is Cause.WORKER_DIED
        assert death.blame(1) is Blame.SHARED

    def test_with_its_guard_it_was_alone(self) -> None:
        death = of_exit(None, last_bytes=GIB, peak_bytes=GIB, limit_bytes=GIB, oom_killed=True, guarded=True)
        assert (death, death.blame(1)) == (deaths.WITH_ITS_GUARD, Blame.ALONE)
        assert "must not send signals" in death.how

    @pytest.mark.parametrize(
        ("code", "last", "limit", "oom", "memory"),
        [
            (KILLED, 0.81, GIB, False, True),
            (KILLED, 0.79, GIB, False, False),
            (KILLED, 0.79, GIB, True, True),
            (KILLED, 0.90, 0, False, False),  # no limit, so nothing is near it
            (KILLED, 0.10, 0, True, True),
            (-11, 0.99, GIB, True, False),  # the kernel kills for memory with SIGKILL only
            (9, 0.99, GIB, True, False),
        ],
    )
    def test_the_kernel_was_first(self, code: int, last: float, limit: int, *, oom: bool, memory: bool) -> None:
        death = exit_with(code, last=last, limit=limit, oom=oom)
        assert (death.cause is Cause.MEMORY_LIMIT) is memory
        assert (death.peak_bytes == int(last * GIB)) is memory
        assert ("--memory-limit" in death.how) is memory

    def test_words(self) -> None:
        assert describe_exit(0) == "ended with exit code 0"
        assert describe_exit(-9) == "was killed by SIGKILL"
        assert describe_exit(-40) == "was killed by signal 40"
        assert "3.8 GiB of the 4 GiB" in for_memory(int(3.8 * GIB), 4 * GIB).how

    @pytest.mark.parametrize(
        ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1 MiB"), (1023 << 20, "1023 MiB"),
                           (int(3.14159 * GIB), "3.14 GiB")],
    )  # fmt: skip
    def test_sizes(self, size: int, text: str) -> None:
        assert readable(size) == text


class TestVerdict:
    def test_lost_and_charged_when_alone(self) -> None:
        lost = verdict_on_death(Attempt(start()), "w", DIED, 7, company=1, last_words="Fatal")
        assert (lost.state, lost.worker, lost.finished_us, lost.blame) == (AttemptState.LOST, "w", 7, Blame.ALONE)
        assert lost.failure is not None
        assert lost.failure.cause is Cause.WORKER_DIED
        assert lost.failure.message == "the worker process was killed by SIGSEGV"
        assert lost.failure.traceback == "Fatal"

    @pytest.mark.parametrize(
        ("death", "blame"),
        [
            (DIED, Blame.SHARED),
            (for_memory(GIB, GIB), Blame.SHARED),
            (deaths.WHILE_STOPPED, Blame.SHARED),
            (deaths.FOR_ANOTHER, Blame.NONE),
            (deaths.WITH_ITS_FORKSERVER, Blame.SHARED),
        ],
    )
    def test_in_company(self, death: Death, blame: Blame) -> None:
        assert verdict_on_death(Attempt(start()), "w", death, 7, company=2).blame is blame

    def test_what_was_to_end_ended(self) -> None:
        late, unwanted = Attempt(start()), Attempt(start())
        late.time_out(0.0, 1.0)
        unwanted.cancel(0.0, 1.0)
        timed_out = verdict_on_death(late, "w", deaths.FOR_ANOTHER, 7, company=2)
        assert timed_out.failure is not None
        assert (timed_out.state, timed_out.failure.cause) == (AttemptState.FAILED, Cause.TIMEOUT)
        cancelled = verdict_on_death(unwanted, "w", deaths.FOR_ANOTHER, 7, company=2)
        assert (cancelled.state, cancelled.failure) == (AttemptState.CANCELLED, None)

    def test_a_time_out_that_cost_the_process_tells_so_and_one_that_was_hit_does_not(self) -> None:
        for stuck, blame in ((True, Blame.ALONE), (False, Blame.NONE)):
            late = Attempt(start())
            late.time_out(0.0, 1.0)
            late.stuck = stuck
            assert verdict_on_death(late, "w", deaths.FOR_ANOTHER, 7, company=2).blame is blame

    def test_what_died_with_the_forkserver_has_one_name(self) -> None:
        names = {
            verdict_on_death(Attempt(start()), worker, deaths.WITH_ITS_FORKSERVER, 7, company=1, forkserver=5).died_with
            for worker in ("w1", "w2")
        }
        assert names == {"forkserver-5"}
        assert verdict_on_death(Attempt(start()), "w", DIED, 7, company=2, forkserver=5).died_with == ""

    def test_the_peak_is_told(self) -> None:
        lost = verdict_on_death(Attempt(start()), "w", for_memory(GIB, GIB), 7, company=1)
        assert lost.failure is not None
        assert (lost.failure.cause, lost.failure.peak_bytes) == (Cause.MEMORY_LIMIT, GIB)
