"""`FleetCluster` and ``dask-fleet clusters`` on a real fleet."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
import pytest
from distributed import Client, Event, LocalCluster

from dask_fleet import FleetCluster
from dask_fleet.model.errors import ClusterFailed, ClusterImpossible, Conflict, FleetError
from dask_fleet.testing.served import ServedFleet

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    folder = tmp_path_factory.mktemp("clusters") / "data"
    with ServedFleet([], folder, args=("--no-services", "--nworkers", "2", "--nthreads", "2")) as fleet:
        yield fleet


@pytest.fixture
def options(fleet: ServedFleet) -> Iterator[dict[str, Any]]:
    yield {"url": fleet.url, "token": fleet.token, "quiet": True}
    for document in fleet.request("GET", "/v1/clusters").json()["clusters"]:
        fleet.request("DELETE", f"/v1/clusters/{document['cluster_id']}", headers={"Prefer": "wait=20"})


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def run_cli(fleet: ServedFleet, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dask-fleet")), "clusters", *args],
        env={**fleet.environment, "FLEET_URL": fleet.url, "FLEET_TOKEN": fleet.token},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_a_program_of_dask_runs_and_its_slots_come_back(fleet: ServedFleet, options: dict[str, Any]) -> None:
    with FleetCluster(n_workers=2, name="plain", **options) as cluster, Client(cluster, name="rehearsal") as client:
        assert client.submit(lambda: 6 * 7).result(timeout=DEADLINE_S) == 42
        cluster.wait_for_workers(2, timeout=DEADLINE_S)
        pids = set(client.run(os.getpid).values())
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        held = client.scatter([bytes([n]) * 10_000 for n in range(6)])
        until(lambda: fleet.request("GET", f"/v1/clusters/{cluster.cluster_id}").json()["clients"] == 1, "it to be counted")
        cluster.scale(1)
        until(lambda: len(client.scheduler_info()["workers"]) == 1, "one worker to leave")
        assert [len(each) for each in client.gather(held)] == [10_000] * 6
    page = f"/v1/clusters/{cluster.cluster_id}"
    until(lambda: fleet.request("GET", page).json()["status"] == "closed", "the cluster to end")
    assert fleet.request("GET", page).json()["reason"] == "closed by admin"
    until(lambda: all(agent["free"] == agent["slots"] for agent in fleet.status()["agents"]), "the slots to come back")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "its fresh processes to end")


def test_its_workers_are_there_when_it_is(options: dict[str, Any]) -> None:
    for _ in range(3):  # of spares and without
        with FleetCluster(n_workers=3, **options) as cluster, Client(cluster) as client:
            assert {worker["nthreads"] for worker in cluster.scheduler_info["workers"].values()} == {1}
            assert len(cluster.observed) == 3
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 3
            assert len(client.run(os.getpid)) == 3
            assert set(map(len, client.who_has(client.scatter([1, 2], broadcast=True)).values())) == {3}


def test_adapting_closes_the_idle_workers_that_dask_has_chosen(options: dict[str, Any]) -> None:
    def hold() -> int:
        Event("enough").wait()
        return os.getpid()

    with FleetCluster(n_workers=4, **options) as cluster, Client(cluster) as client:
        addresses = {worker["name"]: address for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()}
        youngest = addresses[max(addresses)]  # left to itself the server takes that one first
        pid = client.run(os.getpid, workers=[youngest])[youngest]
        held = client.scatter([bytes([n]) * 10_000 for n in range(8)])
        assert len({where for workers in client.who_has(held).values() for where in workers}) == 4
        busy = client.submit(hold, workers=[youngest], pure=False)
        until(lambda: client.processing()[youngest], "the task to run")
        cluster.adapt(minimum=1, maximum=4, interval="50ms", wait_count=2)
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1, "the idle ones to leave")
        assert list(client.scheduler_info(n_workers=-1)["workers"]) == [youngest]
        assert [len(each) for each in client.gather(held)] == [10_000] * 8
        Event("enough", client=client).set()
        assert busy.result(timeout=DEADLINE_S) == pid
        assert cluster.n_workers == 1


def test_variables_are_there_before_preloads_and_tasks(tmp_path: Path) -> None:
    (tmp_path / "preload_of_a_test.py").write_text("import os; os.environ['SEEN'] = os.environ['OF_A_CLUSTER']")
    found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    names = ("OF_A_CLUSTER", "SEEN")

    def seen() -> list[str | None]:
        return [os.environ.get(name) for name in names]

    def configured() -> object:
        return dask.config.get("of.a.test", None)

    args = ("--no-services", "--nworkers", "3", "--nthreads", "1")
    with ServedFleet([], tmp_path / "data", args=args, env={"PYTHONPATH": found}) as served:
        options = {"url": served.url, "token": served.token, "quiet": True}
        given = {"preload": "preload_of_a_test", "config": {"of": {"a": {"test": "of a cluster"}}}}
        spilling = {"env": {"OF_A_CLUSTER": 7}, "local_directory": str(tmp_path / "spill")}
        with (
            FleetCluster(n_workers=2, worker_options=spilling, **given, **options) as cluster,
            FleetCluster(n_workers=1, **options) as other,
            Client(cluster) as client,
            Client(other, set_as_default=False) as others,
        ):
            assert list(client.run(seen).values()) == [["7", "7"]] * 2
            assert list(others.run(seen).values()) == [[None, None]]
            assert client.run_on_scheduler(seen) == [None, None]
            assert client.submit(configured).result(timeout=DEADLINE_S) == "of a cluster"
            assert others.submit(configured).result(timeout=DEADLINE_S) is None
            assert len(list((tmp_path / "spill").glob("dask-fleet-*"))) == 2


def test_a_folder_to_spill_to_is_left_as_it_was(tmp_path: Path) -> None:
    """Whatever else is there is others': a program of Dask's own, say, which has its folder and its locks there."""
    folder = tmp_path / "spill"
    args = ("--no-services", "--nworkers", "2", "--nthreads", "1", "--spare-clusters", "0")
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0", local_directory=folder) as others,
        Client(others, set_as_default=False) as theirs,
        ServedFleet([], tmp_path / "data", args=args) as served,
    ):
        assert theirs.submit(sum, [1, 2]).result(timeout=DEADLINE_S) == 3
        before = sorted(folder.rglob("*"))
        options = {"url": served.url, "token": served.token, "quiet": True}
        with (
            FleetCluster(n_workers=2, config={"temporary-directory": str(folder)}, **options) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            for where in client.run(lambda dask_worker: dask_worker.local_directory).values():
                assert Path(where).is_relative_to(folder)
            os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)  # that one can clean nothing up
            until(lambda: cluster._document["epoch"] == 2, "the new scheduler")
        until(lambda: not list((served.data_dir / "scratch").iterdir()), "all folders to go")
        assert sorted(folder.rglob("*")) == before
        assert theirs.submit(sum, [1, 3]).result(timeout=DEADLINE_S) == 4


def test_one_larger_than_the_pool_is_there_with_what_it_got_and_says_what_it_waits_for(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with FleetCluster(n_workers=6, **{**options, "quiet": False}) as cluster, Client(cluster) as client:
        assert len(client.run(os.getpid)) == 4
        said: list[str] = []

        def told() -> bool:
            said.append(capsys.readouterr().out)
            return "has 4 of 6 workers; it waits for slots for 2 workers" in "".join(said)

        until(told, "it to say that it is smaller")
        assert "room for 4 of the 6 workers" in "".join(said)


def test_workers_that_cannot_start_are_no_cluster(fleet: ServedFleet, options: dict[str, Any]) -> None:
    with pytest.raises(ClusterFailed, match=r"its workers cannot start.*there_is_no_such_module"):
        FleetCluster(n_workers=2, preload="there_is_no_such_module", **options)
    until(lambda: fleet.request("GET", "/v1/clusters").json()["clusters"] == [], "it to end")

    async def main() -> None:
        async with (
            FleetCluster(n_workers=2, asynchronous=True, **options) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            assert len(await client.run(os.getpid)) == 2

    asyncio.run(main())


def test_bad_input_leaves_nothing_running(fleet: ServedFleet, options: dict[str, Any]) -> None:
    with FleetCluster(n_workers=0, name="taken", **options):
        with pytest.raises(Conflict):
            FleetCluster(n_workers=1, name="taken", **options)
        for impossible in ({"pool": "none-such"}, {"threads_per_worker": 1000}):
            with pytest.raises(ClusterImpossible):
                FleetCluster(n_workers=1, **impossible, **options)
        with pytest.raises(FleetError):
            FleetCluster(n_workers=1, **{**options, "token": "fleet_" + "x" * 43})
        assert len(fleet.request("GET", "/v1/clusters").json()["clusters"]) == 1


def test_a_killed_scheduler_is_replaced_and_followed(fleet: ServedFleet, options: dict[str, Any]) -> None:
    with FleetCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
        assert client.submit(lambda: 1).result(timeout=DEADLINE_S) == 1
        until(lambda: cluster.followed, "the cluster to be followed")
        os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)
        until(lambda: cluster.is_lost, "its loss to be seen")
        with Client(cluster, set_as_default=False, timeout=5) as late:  # at the old address it would not come in that time
            assert late.submit(lambda: 3).result(timeout=DEADLINE_S) == 3
        until(lambda: cluster._document["epoch"] == 2, "the new scheduler")
        until(lambda: client.status == "running", "the client to be connected")
        assert client.submit(lambda: 2).result(timeout=DEADLINE_S) == 2


def test_adapting_goes_on_with_the_next_scheduler(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    # A question to the old scheduler would last so long, and until it is answered nothing would be adapted.
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "600s"}),
        FleetCluster(n_workers=1, **options) as cluster,
        Client(cluster) as client,
    ):
        adaptive = cluster.adapt(minimum=1, maximum=3, interval="20ms", wait_count=2)
        until(lambda: cluster.followed and adaptive.state == "running", "it to be adapted")
        os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)
        until(lambda: cluster._document["epoch"] == 2, "the new scheduler")
        until(lambda: client.status == "running", "the client to be connected")
        tasks = [client.submit(time.sleep, 0.5, pure=False) for _ in range(40)]
        until(lambda: len(cluster.observed) == 3, "it to grow")
        client.cancel(tasks)
        del tasks
        until(lambda: len(cluster.observed) == 1, "it to shrink")
        assert not [record.getMessage() for record in caplog.records if record.exc_info and "dapt" in record.getMessage()]


def test_a_scheduler_that_takes_too_much_memory_is_replaced_and_no_other(
    fleet: ServedFleet, options: dict[str, Any]
) -> None:
    def grow() -> int:
        held = []
        while len(held) < 60:
            held.append(b"x" * (10 << 20))
            time.sleep(0.03)
        return len(held)

    with (
        FleetCluster(n_workers=1, scheduler_memory_limit="400MiB", **options) as cluster,
        FleetCluster(n_workers=1, **options) as other,
        Client(cluster) as client,
        Client(other, set_as_default=False) as others,
    ):
        pid = others.run_on_scheduler(os.getpid)
        until(lambda: cluster.followed, "the cluster to be followed")
        with pytest.raises((OSError, CancelledError)):
            client.run_on_scheduler(grow)
        until(lambda: cluster._document["epoch"] == 2, "the new scheduler")
        until(lambda: client.status == "running", "the client to be connected")
        assert client.submit(lambda: 2).result(timeout=DEADLINE_S) == 2
        story = fleet.request("GET", f"/v1/clusters/{cluster.cluster_id}/events").json()["events"]
        (why,) = [event["data"]["reason"] for event in story if event["kind"] == "scheduler_lost"]
        assert re.search(r"killed for its memory \(memory_limit\): it had \S+ MiB of the 400 MiB it may have", why)
        assert others.run_on_scheduler(os.getpid) == pid


def test_from_the_command_line(fleet: ServedFleet, options: dict[str, Any]) -> None:
    made = run_cli(fleet, "create", "mine", "-n", "1", "--set", "array.chunk-size=1MiB")
    assert made.stdout == "mine\n"
    assert "runs at tls://" in made.stderr
    with FleetCluster.from_name("mine", **options) as cluster, Client(cluster) as client:
        assert client.submit(lambda: 1).result(timeout=DEADLINE_S) == 1
        listed = json.loads(run_cli(fleet, "list", "--json").stdout)
        assert [(each["name"], each["status"], each["n_workers"]) for each in listed] == [("mine", "running", 1)]
        assert "mine" in run_cli(fleet, "list").stdout
        assert "of 2 workers" in run_cli(fleet, "scale", "mine", "2").stdout
        cluster.wait_for_workers(2, timeout=DEADLINE_S)
        shown = run_cli(fleet, "show", "mine").stdout
        assert "tls://" in shown
        assert "opened" in shown
        assert "--- Scheduler" in run_cli(fleet, "logs", "mine").stdout
    assert "mine" in run_cli(fleet, "close", "mine").stdout
    until(lambda: "No cluster runs" in run_cli(fleet, "list").stdout, "it to end")
    refused = run_cli(fleet, "show", "mine", code=1)
    assert "error:" in refused.stderr
    run_cli(fleet, "create", "--memory-limit", "lots", code=1)
    run_cli(fleet, "create", "--resource", "GPU", code=1)
    assert "leave out" in run_cli(fleet, "create", "--shared", "--memory-limit", "1GiB", code=1).stderr
    made = run_cli(fleet, "create", "ours", "--shared", "--json")
    assert json.loads(made.stdout)["shared"] is True
    listed = until(
        lambda: {each["status"] for each in json.loads(run_cli(fleet, "list", "--spares", "--json").stdout)}, "the list"
    )
    assert "running" in listed


def test_logs_of_one_that_does_not_run(fleet: ServedFleet, options: dict[str, Any]) -> None:
    with pytest.raises(ClusterFailed):
        FleetCluster(n_workers=1, name="stillborn", preload="there_is_no_such_module", **options)
    told = run_cli(fleet, "logs", "stillborn", code=1)
    assert "there_is_no_such_module" in told.stdout, "what has happened to it"
    assert re.search(r"error: cluster stillborn is \w+ \(.*there_is_no_such_module", told.stderr)
    assert "dask-fleet clusters create" in told.stderr
    as_json = run_cli(fleet, "logs", "stillborn", "--json", code=1)
    assert "there_is_no_such_module" in json.loads(as_json.stdout)["Cluster"]


def test_without_bokeh_the_dashboard_says_that_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bokeh.py").write_text("raise ImportError('not installed')\n")
    found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    args = ("--no-services", "--nworkers", "1", "--nthreads", "1")
    with (
        ServedFleet([], tmp_path / "data", args=args, env={"PYTHONPATH": found}) as served,
        FleetCluster(n_workers=0, url=served.url, token=served.token, quiet=True) as cluster,
        urlopen(cluster.dashboard_link, timeout=DEADLINE_S) as page,
    ):
        assert page.status == 200
        assert "Dask needs bokeh" in page.read().decode()
