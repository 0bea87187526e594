"""How memberships and clusters end: asked to, killed, restarted, refused. None of it touches another cluster."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from distributed import Client
from tests.integration.clusters import workloads
from tests.integration.clusters.site import Cluster, OnLoop, WorkerProcess

from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.frames import Joined, Leave, Left, Released


async def _end_of_scheduler(cluster: Cluster) -> tuple[str, list[Left]]:
    return await cluster.scheduler.ended(), await cluster.released()


def test_a_killed_scheduler_ends_its_own_memberships_only(here: OnLoop, shared: list[WorkerProcess]) -> None:
    survivor, victim = (here.do(here.site.cluster(*shared)) for _ in range(2))
    with survivor.client(set_as_default=False) as client:
        running = client.map(workloads.add_one, range(200))
        with victim.client(set_as_default=False, timeout=2) as other:
            # Clients inside tasks must not go on looking for a scheduler that is dead.
            other.gather([other.submit(workloads.client_of_the_worker, pure=False) for _ in range(4)])
            os.kill(victim.scheduler.pid, signal.SIGKILL)
            how, left = here.do(_end_of_scheduler(victim))
        assert "SIGKILL" in how
        assert [(frame.failed, frame.busy) for frame in left] == [(False, 0)] * 2
        assert sum(client.gather(running)) == sum(range(1, 201))
    assert not any(process.exit for process in shared)
    here.do(survivor.close())


def test_tasks_that_go_on_after_leaving_keep_their_threads_and_are_told_of(
    here: OnLoop, shared: list[WorkerProcess], tmp_path: Path
) -> None:
    cluster = here.do(here.site.cluster(shared[0]))
    with cluster.client(set_as_default=False) as client:
        flags = [str(tmp_path / name) for name in ("holds", "seceded")]
        for started, flag in zip((workloads.sleep_until, workloads.secede_and_sleep_until), flags, strict=True):
            client.submit(_tell_and, started, flag, pure=False)
        for flag in flags:
            assert Path(workloads.sleep_until(f"{flag}-began")).exists()
        (membership,) = cluster.members
        left = here.do(cluster.leave(membership))
        assert left.busy == 2
        assert not shared[0].said(Released, membership)
        # What is free is used meanwhile, what is not is not.
        other = here.do(here.site.cluster(shared[0]))
        with other.client(set_as_default=False) as another:
            assert another.submit(workloads.add_one, 1).result(60) == 2
        here.do(other.close())
        for flag in flags:
            Path(flag).touch()
        here.do(cluster.released())
    here.do(cluster.close())


def _tell_and(then: object, flag: str) -> str:
    Path(f"{flag}-began").touch()
    return then(flag)  # type: ignore[operator,no-any-return]


def test_a_client_restarts_its_workers_and_nobody_elses(here: OnLoop, shared: list[WorkerProcess]) -> None:
    mine, others = (here.do(here.site.cluster(*shared)) for _ in range(2))
    with mine.client(set_as_default=False) as client, others.client(set_as_default=False) as other:
        kept = other.scatter(1)
        lost = client.scatter(1)
        before = set(client.scheduler_info(n_workers=-1)["workers"])
        client.restart(timeout=60)
        assert not before & set(client.scheduler_info(n_workers=-1)["workers"])
        assert lost.cancelled()
        assert client.submit(workloads.add_one, 1).result() == 2
        assert other.submit(workloads.add_one, kept).result() == 2
    for membership, process in mine.members.items():
        assert len(process.said(Joined, membership)) == 2
        assert not process.said(Left, membership)
    here.do(mine.close())
    here.do(others.close())


def test_a_retired_worker_leaves_and_its_data_stays(here: OnLoop, shared: list[WorkerProcess]) -> None:
    cluster = here.do(here.site.cluster(*shared))
    with cluster.client(set_as_default=False) as client:
        first, second = client.scheduler_info(n_workers=-1)["workers"]
        held = client.scatter([1, 2, 3], workers=[first])
        client.retire_workers([first])
        assert client.submit(sum, held).result() == 6
        assert list(client.scheduler_info(n_workers=-1)["workers"]) == [second]
    here.do(cluster.close())


@pytest.mark.parametrize("kind", ["another authority", "expired"])
def test_wrong_certificates_are_refused(here: OnLoop, shared: list[WorkerProcess], kind: str) -> None:
    cluster = here.do(here.site.open())
    authority = cluster.authority
    credentials = {
        "another authority": lambda: Authority(authority.cluster).issue(Role.WORKER),
        "expired": lambda: authority.issue(Role.WORKER, lifetime_s=-60),
    }[kind]()
    membership = cluster.join(shared[0], credentials=credentials, probe_s=1.0)

    async def left() -> Left:
        return (await shared[0].until(lambda: shared[0].said(Left, membership) or shared[0].said(Joined, membership)))[0]  # type: ignore[return-value]

    answer = here.do(left())
    assert isinstance(answer, Left)
    assert answer.failed
    assert not answer.unanswered
    assert "certificate" in answer.reason.lower()
    here.do(cluster.released())
    assert cluster.scheduler.alive
    here.do(cluster.close())


def test_a_scheduler_that_is_busy_is_waited_for(here: OnLoop, shared: list[WorkerProcess]) -> None:
    """It does not answer for longer than a worker's own start may take, and is looked at again and again meanwhile."""
    cluster = here.do(here.site.open())
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)
    try:
        patient = cluster.join(shared[0], timeout_s=1.0, probe_s=0.2)
        hasty = cluster.join(shared[1], timeout_s=1.0, probe_s=0.2, answer_s=2.0)
        (left,) = here.do(shared[1].until(lambda: shared[1].said(Left, hasty)))
        assert left.failed
        assert left.unanswered
        assert "did not answer it within 2 s" in left.reason
        assert not shared[0].said(Left, patient)
    finally:
        os.kill(cluster.scheduler.pid, signal.SIGCONT)
    here.do(shared[0].until(lambda: shared[0].said(Joined, patient)))
    here.do(cluster.close())


def test_strangers_are_refused(here: OnLoop) -> None:
    cluster = here.do(here.site.open())
    plain = cluster.opened.address.replace("tls://", "tcp://")
    with pytest.raises(OSError):  # noqa: PT011
        Client(plain, timeout=1, set_as_default=False)
    stranger = Authority(cluster.authority.cluster)
    cluster.authority = stranger
    with pytest.raises(OSError):  # noqa: PT011
        cluster.client(timeout=1, set_as_default=False)
    here.do(cluster.close())


def test_leaving_before_having_joined(here: OnLoop, shared: list[WorkerProcess]) -> None:
    cluster = here.do(here.site.open())
    membership = cluster.join(shared[0], scheduler="tls://127.0.0.1:1", timeout_s=60.0)
    left = here.do(cluster.leave(membership))
    assert left.reason == "left"
    here.do(cluster.released())
    here.do(cluster.close())


def test_leaving_what_one_is_no_member_of(here: OnLoop, shared: list[WorkerProcess]) -> None:
    shared[0].child.send(Leave("nobody"))
    here.do(shared[0].until(lambda: shared[0].said(Released, "nobody")))


def test_a_bad_request_fails_alone(here: OnLoop, shared: list[WorkerProcess]) -> None:
    cluster = here.do(here.site.cluster(shared[0]))
    membership = cluster.join(shared[0], host="192.0.2.1")  # no address of this host
    (left,) = here.do(shared[0].until(lambda: shared[0].said(Left, membership)))
    assert left.failed
    assert "address" in left.reason
    with cluster.client(set_as_default=False) as client:
        assert client.submit(workloads.add_one, 1).result() == 2
    here.do(cluster.close())


def test_a_new_certificate_comes_into_use_without_a_pause(here: OnLoop, shared: list[WorkerProcess]) -> None:
    from dask_fleet.agent.clusters.frames import Renew

    cluster = here.do(here.site.cluster(shared[0]))
    with cluster.client(set_as_default=False) as client:
        held = client.scatter(5)

        async def renew() -> None:
            cluster.scheduler.renew(cluster.authority.issue(Role.SCHEDULER))
            for membership, process in cluster.members.items():
                process.child.send(Renew(membership, cluster.authority.issue(Role.WORKER)))

        here.do(renew())
        cluster.join(shared[1])
        here.do(cluster.joined())
        assert client.submit(workloads.add_one, held).result() == 6
        with cluster.client(set_as_default=False) as late:
            assert late.submit(workloads.add_one, 1).result() == 2
    here.do(cluster.close())


def test_scratch_and_path_are_as_before(here: OnLoop, shared: list[WorkerProcess]) -> None:
    clusters = [here.do(here.site.cluster(*shared)) for _ in range(2)]
    for cluster in clusters:  # the first one leaves first, with the other one's folder in front of its own on the path
        here.do(cluster.close())
    assert not list(here.site.scratch.glob("dask-scratch-space/membership-*"))
    probe = here.do(here.site.cluster(shared[0]))
    with probe.client(set_as_default=False) as client:
        paths = client.submit(_scratch_on_path, pure=False).result()
    assert len(paths) == 1
    here.do(probe.close())


def _scratch_on_path() -> list[str]:
    import sys

    return [path for path in sys.path if "membership-" in path]
