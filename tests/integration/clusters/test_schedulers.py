"""Scheduler processes: how they are opened, what they listen on, what they report, and when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from tests.integration.clusters import workloads
from tests.integration.clusters.site import PATIENCE_S, OnLoop, WorkerProcess

from dask_fleet.agent.clusters.frames import Open
from dask_fleet.agent.clusters.schedulers import SchedulerFailed


def _eventually(true: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def _listening(pid: int) -> list[tuple[str, int]]:
    return [
        tuple(connection.laddr)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def test_a_spare_listens_on_nothing_and_can_be_closed(here: OnLoop) -> None:
    spare = here.do(here.site.spare())
    assert _listening(spare.pid) == []
    here.do(spare.close("not needed"))
    assert here.do(spare.ended()) == "not needed"


def test_without_a_dashboard_one_port_on_the_given_host_is_all(here: OnLoop) -> None:
    cluster = here.do(here.site.open(host="127.0.0.3"))
    ((host, port),) = _listening(cluster.scheduler.pid)
    assert cluster.opened.address == f"tls://{host}:{port}" == f"tls://127.0.0.3:{port}"
    assert cluster.opened.dashboard == ""
    here.do(cluster.close())


def test_a_dashboard_is_on_loopback_and_proxies_nothing(here: OnLoop) -> None:
    cluster = here.do(here.site.open(host="127.0.0.3", dashboard=True))
    base = cluster.opened.dashboard.rpartition("/")[0]
    assert base.startswith("http://127.0.0.1:")
    assert sorted(host for host, _ in _listening(cluster.scheduler.pid)) == ["127.0.0.1", "127.0.0.3"]
    assert urllib.request.urlopen(f"{base}/health", timeout=30).read() == b"ok"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{base}/proxy/1/127.0.0.1/status", timeout=30)
    here.do(cluster.close())


def test_asked_again_it_gives_the_same_answer_and_takes_no_second_cluster(here: OnLoop) -> None:
    cluster = here.do(here.site.open())
    request = Open(cluster=cluster.authority.cluster, credentials=cluster.authority.issue("scheduler"), host="127.0.0.1")  # type: ignore[arg-type]
    assert here.do(cluster.scheduler.open(request)) == cluster.opened
    with pytest.raises(SchedulerFailed, match="another spare"):
        here.do(here.site.open(cluster.scheduler))
    here.do(cluster.close())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "0.0.0.0"}, "one address"),
        ({"host": "192.0.2.1"}, "address"),
        ({"preloads": ["import no_such_module_anywhere"]}, "no_such_module_anywhere"),
    ],
)
def test_what_cannot_be_opened_says_why_and_ends(here: OnLoop, options: dict[str, object], says: str) -> None:
    spare = here.do(here.site.spare())
    with pytest.raises(SchedulerFailed, match=says):
        here.do(here.site.open(spare, **options))
    here.do(spare.ended())
    assert not psutil.pid_exists(spare.pid)


def test_configuration_and_preloads_of_a_cluster_reach_its_scheduler(here: OnLoop) -> None:
    preload = "def dask_setup(scheduler):\n    scheduler.set_by_preload = 7\n"
    cluster = here.do(
        here.site.open(
            preloads=[preload], allowed_failures=0,
            config={"distributed": {"scheduler": {"worker-saturation": 1.5}}, "distributed.scheduler.bandwidth": 7},
        )
    )
    with cluster.client(set_as_default=False) as client:

        def look(dask_scheduler: object = None) -> tuple[object, ...]:
            s = dask_scheduler
            return s.WORKER_SATURATION, s.bandwidth, s.set_by_preload, s.allowed_failures  # type: ignore[attr-defined,union-attr]

        assert client.run_on_scheduler(look) == (1.5, 7, 7, 0)
    here.do(cluster.close())
    plain = here.do(here.site.open())
    with plain.client(set_as_default=False) as client:
        assert client.get_scheduler_logs()
    here.do(plain.close())


@pytest.mark.parametrize(
    ("for_job", "config", "found"),
    [
        (False, {}, (1.1, True)),  # of Dask, as of a LocalCluster
        (True, {}, (float("inf"), False)),
        (True, {"distributed.scheduler.worker-saturation": 1.5}, (1.5, False)),
        (False, {"distributed.scheduler.active-memory-manager.start": False}, (1.1, False)),
    ],
)
def test_a_users_cluster_schedules_as_dask_does_and_a_jobs_for_short_graphs(
    here: OnLoop, for_job: bool, config: dict[str, object], found: tuple[float, bool]
) -> None:
    cluster = here.do(here.site.open(for_job=for_job, config=config))
    with cluster.client(set_as_default=False) as client:

        def look(dask_scheduler: object = None) -> tuple[object, ...]:
            s = dask_scheduler
            return s.WORKER_SATURATION, s.extensions["amm"].running  # type: ignore[attr-defined,union-attr]

        assert client.run_on_scheduler(look) == found
    here.do(cluster.close())


def test_it_reports_workers_tasks_clients_and_idleness(here: OnLoop, shared: list[WorkerProcess], tmp_path: Path) -> None:
    cluster = here.do(here.site.cluster(*shared))
    scheduler, flag = cluster.scheduler, tmp_path / "flag"

    def state() -> tuple[int, ...]:
        now = scheduler.state
        return (now.workers, now.threads, now.tasks, now.unrunnable, now.clients, now.idle_us > 0) if now else ()

    _eventually(lambda: state() == (2, 4, 0, 0, 0, True))
    with cluster.client(set_as_default=False) as client:
        busy = client.submit(workloads.sleep_until, str(flag))
        never = client.submit(workloads.add_one, 1, resources={"GPU": 1})
        _eventually(lambda: state() == (2, 4, 2, 1, 1, False))
        flag.touch()
        busy.result()
        never.cancel()
        _eventually(lambda: state() == (2, 4, 0, 0, 1, True))
    _eventually(lambda: state()[4] == 0)
    here.do(cluster.close())


def test_an_idle_cluster_ends_by_itself(here: OnLoop, shared: list[WorkerProcess]) -> None:
    cluster = here.do(here.site.cluster(shared[0], idle_timeout_s=1.0))
    assert here.do(cluster.scheduler.ended()) == "idle-timeout-exceeded"
    here.do(cluster.released())


def test_a_scheduler_that_does_not_answer_is_killed(here: OnLoop) -> None:
    cluster = here.do(here.site.open())
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)
    here.do(cluster.scheduler.close("enough", timeout_s=0.2))
    assert "SIGKILL" in here.do(cluster.scheduler.ended())


def test_everything_dies_with_its_agent() -> None:
    """Kill -9 of the process that forked them: no scheduler and no worker process stays."""
    program = """
import asyncio, os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.integration.clusters.site import Site

async def main():
    site = Site(Path(os.environ["SCRATCH"]), ThreadPoolExecutor(1))
    process = await site.process()
    cluster = await site.cluster(process)
    spare = await site.spare()
    print(cluster.scheduler.pid, process.pid, spare.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "SCRATCH": "/tmp"}
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        assert len(pids) == 3
        children = psutil.Process(agent.pid).children(recursive=True)
        assert {child.pid for child in children} >= set(pids)
    finally:
        agent.kill()
        agent.communicate()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive
