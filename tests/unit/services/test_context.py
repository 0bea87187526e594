import contextvars
import math
import threading
from types import SimpleNamespace

import pytest

from dask_fleet.services import cancelled, context, progress
from dask_fleet.services.context import JobContext, current_job


class Recorder:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.reports: list[tuple[float, float, str]] = []
        self.cancelled = False
        monkeypatch.setattr(context, "time", SimpleNamespace(monotonic=lambda: self.now))

    def job(self) -> JobContext:
        return JobContext(
            job_id="j", attempt=1, report=lambda *report: self.reports.append(report), is_cancelled=lambda: self.cancelled
        )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_outside_a_job_nothing_happens() -> None:
    progress(1, 2, "text")
    assert not cancelled()
    assert current_job() is None


def test_reports_are_at_most_ten_a_second_and_the_last_is_kept(recorder: Recorder) -> None:
    with recorder.job():
        progress(1, 100)
        for done in range(2, 50):
            progress(done, 100)
        assert recorder.reports == [(1.0, 100.0, "")]
        recorder.now += context.REPORT_EVERY_S * 1.01
        progress(50, 100, "half")
        progress(51, 100)
        assert recorder.reports[1:] == [(50.0, 100.0, "half")]
    assert recorder.reports[2:] == [(51.0, 100.0, "")]


def test_the_end_is_reported_at_once(recorder: Recorder) -> None:
    with recorder.job():
        progress(1, 2)
        progress(2, 2)
        assert recorder.reports == [(1.0, 2.0, ""), (2.0, 2.0, "")]
    assert len(recorder.reports) == 2, "nothing is reported twice"


def test_a_report_kept_back_can_be_flushed(recorder: Recorder) -> None:
    with recorder.job() as job:
        progress(1, 10)
        progress(2, 10)
        job.flush()
        job.flush()
        assert recorder.reports == [(1.0, 10.0, ""), (2.0, 10.0, "")]
        progress(3, 10)
        assert len(recorder.reports) == 2, "a flush counts as a report"


def test_numbers_must_be_finite_and_texts_are_cut(recorder: Recorder) -> None:
    with recorder.job():
        with pytest.raises(ValueError, match="finite"):
            progress(math.nan, 1)
        with pytest.raises(ValueError, match="finite"):
            progress(1, math.inf)
        progress(0, 0, "x" * 1000)
    assert recorder.reports == [(0.0, 0.0, "x" * 200)]


def test_cancelled_asks_the_job(recorder: Recorder) -> None:
    with recorder.job():
        assert not cancelled()
        recorder.cancelled = True
        assert cancelled()
    assert not cancelled()


def test_jobs_of_two_threads_do_not_meet(recorder: Recorder) -> None:
    seen: list[JobContext | None] = []
    with recorder.job() as job:
        thread = threading.Thread(target=lambda: seen.append(current_job()), name="other-job")
        thread.start()
        thread.join()
        inner = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(inner.run(current_job)), name="same-job")
        thread.start()
        thread.join()
    assert seen == [None, job]


def test_a_text_that_is_no_utf_8_is_spelled_out(recorder: Recorder) -> None:
    with recorder.job():
        progress(1, 2, "caf\udce9.csv")
    assert recorder.reports[0][2] == "caf\\udce9.csv"
