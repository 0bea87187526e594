"""How people look at a cluster, its logs, events and measurements."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask.array as da
import pytest
from distributed import Client, get_task_stream, get_worker, performance_report, progress, wait
from distributed.diagnostics import MemorySampler
from tests.compat.take import LOCAL, THREADS, WORKERS
from tests.compat.test_futures import until


def test_wait_for_workers(client: Client) -> None:
    client.wait_for_workers(WORKERS, timeout=60)
    with pytest.raises(TimeoutError):
        client.wait_for_workers(WORKERS + 100, timeout=0.2)


def test_scheduler_info_and_versions(client: Client) -> None:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    assert [worker["nthreads"] for worker in workers.values()] == [THREADS] * WORKERS
    assert all(worker["memory_limit"] > 0 for worker in workers.values())
    versions = client.get_versions(check=True)
    assert len(versions["workers"]) == WORKERS
    assert versions["scheduler"]["packages"]["distributed"] == versions["client"]["packages"]["distributed"]


def test_everything_is_encrypted(client: Client) -> None:
    assert client.scheduler.address.startswith("tls://")
    assert all(address.startswith("tls://") for address in client.scheduler_info(n_workers=-1)["workers"])


def test_worker_logs(client: Client) -> None:
    def shout() -> str:
        logging.getLogger("distributed.worker").warning("a task was here")
        return str(get_worker().address)

    where = client.submit(shout, pure=False).result()
    logs = client.get_worker_logs()
    assert len(logs) == WORKERS
    assert any("a task was here" in text for _, text in logs[where])


def test_scheduler_logs(client: Client) -> None:
    client.run_on_scheduler(lambda: logging.getLogger("distributed.scheduler").warning("somebody was here"))
    assert any("somebody was here" in text for _, text in client.get_scheduler_logs())


def test_events(client: Client) -> None:
    client.log_event("from-the-client", {"n": 1})
    client.submit(lambda: get_worker().log_event("from-a-task", {"n": 2}), pure=False).result()
    assert [event["n"] for _, event in client.get_events("from-the-client")] == [1]
    until(lambda: client.get_events("from-a-task"))
    assert [event["n"] for _, event in client.get_events("from-a-task")] == [2]
    heard: list[int] = []
    client.subscribe_topic("live", lambda event: heard.append(event[1]["n"]))
    until(lambda: client.log_event("live", {"n": 3}) or heard)
    client.unsubscribe_topic("live")
    assert set(heard) == {3}


def test_print_and_warn_reach_the_client(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    from distributed import print as task_print

    client.submit(lambda: task_print("hello from a task"), pure=False).result()
    seen: list[str] = []

    def heard() -> bool:
        seen.append(capsys.readouterr().out)
        return "hello from a task" in "".join(seen)

    until(heard)


def test_task_stream(client: Client) -> None:
    with get_task_stream(client=client) as stream:
        wait(client.map(lambda n: n + 1, range(20), pure=False))
        until(lambda: len(client.get_task_stream(count=20)) == 20)
    assert len(stream.data) == 20
    assert {task["status"] for task in stream.data} == {"OK"}


def test_memory_sampler(client: Client) -> None:
    sampler = MemorySampler()
    with sampler.sample("held", client=client, interval=0.05):
        kept = client.persist(da.ones(1_000_000, chunks=250_000))
        wait(kept)
        time.sleep(0.3)  # what is measured is time
    samples = sampler.samples["held"]
    assert len(samples) > 2
    assert max(size for _, size in samples) > 1 << 20


def test_progress(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    future = client.submit(sum, client.map(lambda n: n + 1, range(20), pure=False))
    progress(future, notebook=False)
    wait(future)
    until(lambda: "100%" in capsys.readouterr().out)
    assert future.result() == 210


def test_performance_report(client: Client, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with performance_report(str(page)):
        client.submit(sum, client.map(lambda n: n + 1, range(20), pure=False)).result()
    report = page.read_text()
    assert "Dask Performance Report" in report
    assert "Task Stream" in report
    assert f"Workers: {WORKERS}" in report


def test_dashboard(cluster: Any) -> None:
    with urlopen(cluster.dashboard_link, timeout=60) as answer:
        assert answer.status == 200
        assert "bokeh" in answer.read().decode().lower()


def test_profile(request: pytest.FixtureRequest) -> None:
    """Off by default in a fleet, where idle workers are to cost next to nothing; asked for, it is there."""
    cluster = request.getfixturevalue("cluster") if LOCAL else None
    with contextlib.ExitStack() as stack:
        if cluster is None:
            profiling = {"distributed.worker.profile.enabled": True}
            cluster = stack.enter_context(request.getfixturevalue("fleet").cluster(1, 1, config=profiling))
        client = stack.enter_context(Client(cluster))
        client.submit(_work_of_a_while, 0.5, pure=False).result()
        until(lambda: client.profile()["count"] > 0)
        assert "_work_of_a_while" in str(client.profile())


def _work_of_a_while(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_dump_of_the_state(client: Client, tmp_path: Path) -> None:
    wait(client.submit(sum, [1, 2], key="in-the-dump"))
    client.dump_cluster_state(str(tmp_path / "state"), format="yaml")
    assert "in-the-dump" in _unpacked(tmp_path / "state.yaml")


def _unpacked(path: Path) -> str:
    return path.read_text()


def test_cluster_object(client: Client, cluster: Any) -> None:
    assert cluster.scheduler_address == client.scheduler.address
    assert len(cluster.scheduler_info["workers"]) == WORKERS
    assert client.cluster is cluster
    assert "workers=2" in repr(cluster)
    assert cluster._repr_html_()
    assert any("Scheduler" in name for name in cluster.get_logs())
    json.dumps(dict(cluster.get_logs(cluster=False, scheduler=True, workers=False)))
