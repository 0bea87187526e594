"""`FleetCluster` against a stand-in for the server with real schedulers and workers: what its own side can get wrong."""

from __future__ import annotations

import asyncio
import gc
import io
import pickle
import threading
import time
import warnings
import weakref
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Any

import pytest
from distributed import Client, wait
from distributed.core import Status
from distributed.versions import VersionMismatchWarning
from tests.unit.client.cluster_server import DEADLINE_S, Remote, status_of, until

from dask_fleet import FleetCluster
from dask_fleet.client import cluster as cluster_module
from dask_fleet.client import cluster_clients, cluster_watch
from dask_fleet.model.errors import (
    ClusterFailed,
    ClusterImpossible,
    Conflict,
    NotFound,
    QuotaExceeded,
    VersionMismatch,
    WaitTimeout,
)


def test_any_dask_program_runs_on_it_and_nothing_is_left(server: Remote) -> None:
    before = threading.active_count()
    with FleetCluster(n_workers=2, name="plain", **server.options) as cluster:
        assert cluster.name == "plain"
        assert cluster.scheduler_address.startswith("tls://")
        with Client(cluster) as client:
            assert client.submit(sum, range(10)).result(timeout=DEADLINE_S) == 45
            client.wait_for_workers(2, timeout=DEADLINE_S)
        until(lambda: len(cluster.scheduler_info["workers"]) == 2, "the workers to be seen")
        assert "workers=2" in repr(cluster)
        assert "plain" in cluster._repr_html_()
        assert len(cluster.worker_spec) == 2
        logs = cluster.get_logs()
        assert "opened" in logs["Cluster"]
        assert len(logs) == 4
    assert cluster.status == Status.closed
    assert status_of(server, "plain") == "closed"
    assert repr(cluster) == "FleetCluster('plain', closed)"
    assert "closed" in cluster._repr_html_()
    for use in (cluster.get_logs, lambda: cluster.scale(2)):
        with pytest.raises(RuntimeError, match="cluster plain is closed: take another one"):
            use()
    cluster.close()
    until(lambda: threading.active_count() <= before, "all threads to end")


def test_the_private_key_is_never_sent_and_never_shown(server: Remote) -> None:
    with FleetCluster(name="secret", n_workers=0, **server.options) as cluster:
        sent = server.state()["clusters"]["secret"]["body"]
        assert "PRIVATE" not in str(sent)
        assert sent["csr"].startswith("-----BEGIN CERTIFICATE REQUEST-----")
        assert "PRIVATE" not in repr(cluster.security)
        with pytest.raises(TypeError, match="does not leave"):
            pickle.dumps(cluster.security)


def test_asynchronous(server: Remote) -> None:
    async def main() -> None:
        async with (
            FleetCluster(n_workers=1, name="async", asynchronous=True, **server.options) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            assert await client.submit(lambda x: x + 1, 1) == 2
            await cluster.scale(2)
            assert server.state()["clusters"]["async"]["n_workers"] == 2
        assert status_of(server, "async") == "closed"
        awaited = await FleetCluster(n_workers=0, name="awaited", asynchronous=True, **server.options)
        assert awaited.status == Status.running
        await awaited.close()

    asyncio.run(main())


def test_scaling_keeps_data_and_the_plan_is_what_was_asked_for(server: Remote) -> None:
    with (
        FleetCluster(n_workers=2, name="scaled", memory_limit="1GiB", **server.options) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=DEADLINE_S)
        futures = client.scatter([bytes([n]) * 1000 for n in range(8)])
        cluster.scale(1)
        until(lambda: len(cluster.scheduler_info["workers"]) == 1, "one worker to leave")
        assert len(client.gather(futures)) == 8
        cluster.scale(cores=3)
        assert server.state()["clusters"]["scaled"]["n_workers"] == 3
        cluster.scale(memory="2GiB")
        assert cluster.n_workers == 2
        for n in (-1, 1.5, True, "2"):
            with pytest.raises(ValueError, match="whole number"):
                cluster.scale(n)
        server.set(workers=False)
        cluster.scale(4)
        until(lambda: len(cluster.scheduler_info["workers"]) == 2, "the workers of before")
        assert "workers=2, wanted=4" in repr(cluster)
        assert len(cluster.plan) == len(cluster.requested) == 4
        assert len(cluster.observed) == 2


def test_adapting_follows_the_load(server: Remote) -> None:
    with FleetCluster(n_workers=0, name="adapted", **server.options) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=2, interval="50ms", wait_count=2)
        assert client.submit(lambda: 5).result(timeout=DEADLINE_S) == 5
        assert cluster.n_workers >= 1
        client.cancel(list(client.futures.values()))
        until(lambda: cluster.n_workers == 0, "the idle workers to be given back")


def test_one_that_waits_says_for_what_and_runs_in_the_end(server: Remote) -> None:
    server.set(hold=True)
    said = io.StringIO()
    made: list[FleetCluster] = []

    def take() -> None:
        made.append(FleetCluster(n_workers=1, name="late", **server.options))

    with redirect_stdout(said):
        thread = threading.Thread(target=take)
        thread.start()
        until(lambda: "waits for free slots in the pool 'default'" in said.getvalue(), "the reason")
        server.set(hold=False)
        thread.join(DEADLINE_S)
    with made[0] as cluster:
        assert cluster.status == Status.running


def test_a_time_out_gives_back_what_was_asked_for(server: Remote) -> None:
    server.set(hold=True)
    with pytest.raises(WaitTimeout, match="free slots"):
        FleetCluster(name="never", timeout=1, quiet=True, **server.options)
    assert status_of(server, "never") == "closed"


def test_interrupted_in_the_middle_nothing_is_left(server: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives while the first answer is awaited: its id is not known, and yet it is closed."""
    server.set(hold=True)
    from dask_fleet.client.control import ControlLink

    exchange = ControlLink._exchange
    calls = []

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(args)
        answer = exchange(self, *args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(ControlLink, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FleetCluster(name="interrupted", **server.options)
    assert status_of(server, "interrupted") == "closed"

    async def main() -> None:
        async def take() -> None:
            await FleetCluster(name="cancelled", asynchronous=True, quiet=True, **server.options)

        task = asyncio.create_task(take())
        while "cancelled" not in server.state()["clusters"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert status_of(server, "cancelled") == "closed"


def test_refusals_are_the_servers_own_errors_and_nothing_is_given_back(server: Remote) -> None:
    with FleetCluster(name="taken", n_workers=0, **server.options):
        with pytest.raises(Conflict, match="runs already"):
            FleetCluster(name="taken", **server.options)
        assert status_of(server, "taken") == "running"
    for code, status, cls in (
        ("cluster_impossible", 422, ClusterImpossible),
        ("version_mismatch", 409, VersionMismatch),
        ("cluster_failed", 409, ClusterFailed),
    ):
        server.set(refuse=(status, code, "no"))
        with pytest.raises(cls):
            FleetCluster(**server.options)
    asked = len(server.state()["requests"])
    server.set(refuse=(429, "quota_exceeded", "close one first"))
    with pytest.raises(QuotaExceeded):
        FleetCluster(**server.options)
    assert len(server.state()["requests"]) == asked + 1, "asking again helps nobody"
    server.set(refuse=None)
    with pytest.raises(NotFound):
        FleetCluster.from_name("nobody", **server.options)
    deleted = [each for each in server.state()["requests"] if each.startswith("DELETE")]
    assert len(deleted) == len(set(deleted))


@pytest.mark.parametrize(
    "options",
    [
        {"n_workers": -1},
        {"n_workers": 1.5},
        {"threads_per_worker": 0},
        {"memory_limit": "lots"},
        {"memory_limit": 1},
        {"idle_timeout": "soon"},
        {"config": {"x": object()}},
        {"worker_options": {"colour": "red"}},
        {"worker_options": {"lifetime": "1h"}},
        {"worker_options": {"env": {"A": "1"}}, "env": {"A": "2"}},
        {"env": {"DASK_ARRAY__CHUNK_SIZE": "1MiB"}},
        {"env": {"PYTHONPATH": "/tmp"}},
        {"env": {"FLEET_TOKEN": "x"}},
        {"env": {"a b": "x"}},
        {"env": {"A": "x\0"}},
        {"env": {str(n): "x" for n in range(201)}},
        {"scheduler_memory_limit": "lots"},
        {"worker_options": {"nthreads": 1}, "threads_per_worker": 2},
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        FleetCluster(url="http://127.0.0.1:9", **options)


def test_other_versions_are_named_in_a_warning(server: Remote) -> None:
    server.set(versions={"numpy": "0.0.1", "dask": "1.0"})
    with pytest.warns(VersionMismatchWarning, match=r"dask .* here and 1\.0 there") as caught:
        FleetCluster(n_workers=0, **server.options).close()
    assert len(caught) == 1


def test_it_lives_on_and_is_found_again_by_its_name(server: Remote) -> None:
    with (
        FleetCluster(n_workers=1, name="standing", shutdown_on_close=False, **server.options) as cluster,
        Client(cluster) as client,
    ):
        client.publish_dataset(x=client.scatter(7))
    assert status_of(server, "standing") == "running"
    with FleetCluster.from_name("standing", **server.options) as again, Client(again) as client:
        assert client.get_dataset("x").result(timeout=DEADLINE_S) == 7
    assert status_of(server, "standing") == "running"
    FleetCluster.from_name("standing", shutdown_on_close=True, **server.options).close()
    assert status_of(server, "standing") == "closed"


def test_a_forgotten_one_is_closed(server: Remote) -> None:
    cluster = FleetCluster(n_workers=0, name="forgotten", **server.options)
    runner = cluster._loop_runner
    until(lambda: cluster.followed, "the cluster to be followed")
    known = weakref.ref(cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cluster = None
        until(lambda: gc.collect() >= 0 and known() is None, "nothing to hold the cluster")
    until(lambda: status_of(server, "forgotten") == "closed", "it to be closed")
    runner.stop()


@pytest.mark.parametrize("stays", [True, False])
def test_whether_it_ends_with_its_object_can_be_changed_later(server: Remote, stays: bool) -> None:
    name = f"changed-{stays}"
    cluster = FleetCluster(n_workers=0, name=name, shutdown_on_close=stays, **server.options)
    cluster.shutdown_on_close = not stays
    assert cluster.shutdown_on_close is not stays
    runner, known = cluster._loop_runner, weakref.ref(cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cluster = None
        until(lambda: gc.collect() >= 0 and known() is None, "nothing to hold the cluster")
    until(lambda: not any(thread.name == "dask-fleet close" for thread in threading.enumerate()), "it to be let go")
    assert status_of(server, name) == ("running" if stays else "closed")
    runner.stop()


def test_a_replaced_scheduler_is_followed_by_cluster_and_clients(server: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_clients, "_AT_MOST_S", 0.5)
    said = io.StringIO()
    with (
        redirect_stdout(said),
        FleetCluster(n_workers=1, name="moved", **server.options) as cluster,
        Client(cluster) as client,
    ):
        lost = client.submit(lambda: 1)
        assert lost.result(timeout=DEADLINE_S) == 1
        until(lambda: cluster.followed, "the cluster to be followed")
        until(lambda: not any("quicken" in task.get_name() for task in cluster._tasks), "the search for new clients to end")
        old = cluster.scheduler_address
        server.replace("moved", pending=True)
        until(lambda: "has lost its scheduler (SIGKILL)" in said.getvalue(), "the loss to be told")
        server.set(hold=False)
        until(lambda: "has a new scheduler" in said.getvalue(), "the new scheduler to be told")
        assert cluster.scheduler_address != old
        assert lost.cancelled()
        assert client.submit(lambda: 2).result(timeout=DEADLINE_S) == 2
        assert client.scheduler_comm.interval < 0.01, "there, too, it sends sooner"
        until(lambda: len(cluster.scheduler_info["workers"]) == 1, "the new workers to be seen")
        wait(client.map(lambda x: x, range(5)), timeout=DEADLINE_S)


def test_whoever_waits_for_it_on_another_loop_it_can_be_closed(server: Remote) -> None:
    cluster = FleetCluster(n_workers=0, name="awaited", **server.options)

    async def main() -> None:
        assert await cluster is cluster
        await asyncio.to_thread(cluster.close)  # while it still looks for the client that will be made

    asyncio.run(main())
    assert cluster.status == Status.closed
    assert status_of(server, "awaited") == "closed"


def test_a_silent_scheduler_is_waited_for_once(server: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(cluster_watch, "_subscribe", silent)
    monkeypatch.setattr(cluster_module, "_FIRST_LOOK_S", 1.0)
    with FleetCluster(n_workers=0, name="silent", **server.options) as cluster:
        began = time.monotonic()
        assert [len(cluster.observed) for _ in range(60)] == [0] * 60
        assert time.monotonic() - began < DEADLINE_S, "60 times a second"


def test_one_that_has_ended_says_why(server: Remote) -> None:
    said = io.StringIO()
    with redirect_stdout(said):
        cluster = FleetCluster(n_workers=0, name="idle", **server.options)
        until(lambda: cluster.followed, "the cluster to be followed")
        server.end("idle", "idle for 20 min")
        until(lambda: cluster.status == Status.closed, "the end to be seen")
        cluster.close()
    assert "cluster idle has ended: idle for 20 min" in said.getvalue()


def test_certificates_are_renewed_in_time(server: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    server.set(lifetime_s=2.0)
    with FleetCluster(n_workers=1, name="renewed", **server.options) as cluster:
        first = cluster.security.tls_client_cert
        until(lambda: cluster.security.tls_client_cert != first, "the second certificate")
        server.set(lifetime_s=3600.0)
        _, ends = cluster_watch.validity_of(first)
        until(lambda: time.time() > ends + 0.5, "the first certificate to be worth nothing")
        with Client(cluster) as client:  # new connections: with the first certificate they would be refused
            assert client.submit(lambda: 3).result(timeout=DEADLINE_S) == 3


def test_certificates_of_an_authority_that_ends_are_not_asked_for_all_the_time(
    server: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.set(ends=(ends := time.time() + 4))
    signed: list[float] = []
    renew = FleetCluster.renew

    async def counted(self: FleetCluster) -> None:
        signed.append(time.time())
        await renew(self)

    monkeypatch.setattr(FleetCluster, "renew", counted)
    with FleetCluster(n_workers=1, name="ending", **server.options):
        until(lambda: signed and signed[-1] > ends, "it to be asked for when the authority has ended")
        gaps = [after - before for before, after in pairwise(signed)]
        assert all(after > before * 1.2 for before, after in pairwise(gaps)), "later and later"
        told = [record for record in caplog.records if "no later" in record.getMessage()]
        assert len(told) == 1, "once"
