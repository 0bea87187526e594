"""Who gets slots first: clusters among each other, and clusters beside jobs."""

from __future__ import annotations

from tests.unit.controller.clusters.hosts import Host, new, now, one_host, work
from tests.unit.controller.rig import Rig, outcome, run

from dask_fleet.controller.clusters.capacity import Host as Place
from dask_fleet.controller.clusters.capacity import Size
from dask_fleet.controller.clusters.placing import Need, Turns, first_workers, growth, impossible, width_to_workers
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.states import RunState


def place(agent: str = "a", *, free: int, slots: int = 8, pool: str = "default") -> Place:
    return Place(agent, pool=pool, slots=slots, nthreads=1, free=free)


def need(name: str, *, user: str = "ada", threads: int = 1, missing: int = 1, since: float = 0.0, near: str | None = None,
         urgent: bool = False) -> Need:  # fmt: skip
    return Need(name, ("default", user), "default", threads, missing, since, near, urgent)


def test_users_take_turns_and_within_one_the_first_comes_first() -> None:
    needs = [need(f"a{n}", since=n) for n in range(3)] + [need("b0", user="bob", since=9.0)]
    grants, promise = first_workers(needs, [place(free=3)], Turns())
    assert [grant.cluster_id for grant in grants] == ["a0", "b0", "a1"]
    assert promise is not None
    assert promise[0].cluster_id == "a2"


def test_who_lost_its_workers_comes_before_who_has_none_yet() -> None:
    grants, _ = first_workers([need("new"), need("lost", since=5.0, urgent=True)], [place(free=1)], Turns())
    assert [grant.cluster_id for grant in grants] == ["lost"]


def test_a_large_worker_is_promised_slots_that_smaller_ones_behind_it_do_not_take() -> None:
    hosts = [place("a", free=2), place("b", free=1)]
    grants, promise = first_workers([need("large", threads=4), need("small", since=1.0)], hosts, Turns())
    assert promise is not None
    assert (promise[0].cluster_id, promise[1].agent) == ("large", "a")
    assert [(grant.cluster_id, grant.agent) for grant in grants] == [("small", "b")]


def test_growth_goes_round_and_stays_near_the_scheduler() -> None:
    hosts = [place("a", free=2), place("b", free=4)]
    needs = [need("x", missing=5, near="a"), need("y", user="bob", missing=1, since=1.0)]
    grants = [(grant.cluster_id, grant.agent) for grant in growth(needs, hosts, Turns())]
    assert grants == [("x", "a"), ("y", "b"), ("x", "a"), ("x", "b"), ("x", "b"), ("x", "b")]


def test_what_can_never_be_had_is_told_with_what_there_is() -> None:
    assert impossible("default", Size(8), [place(free=0)]) is None
    assert impossible("default", Size(9), []) is None, "an agent may come"
    why = impossible("default", Size(9), [place(free=8)])
    assert "the largest has 8 slots; ask for at most 8 threads per worker" in str(why)
    assert [width_to_workers(width, 2, free=10) for width in (0, 1, 3, 4, 100)] == [5, 1, 2, 2, 5]
    assert width_to_workers(100, 2, free=0) == 1


@run
async def test_fifty_clusters_over_four_slots_all_finish_in_fair_order() -> None:
    async with Rig(max_clusters_per_user=50) as rig:
        clusters = rig.controller.clusters
        hosts = [Host(rig, "one-a", slots=2).connect(), Host(rig, "two-a", slots=2).connect()]
        # 40 of one user first, then 10 of another, who must not wait for those.
        users = ["ada"] * 40 + ["bob"] * 10
        made = []
        for n, user in enumerate(users):
            made.append(await clusters.create(new(f"c{n}", user=user, n_workers=2)))
            rig.clock.us += 1000
        began: list[str] = []
        while len(began) < len(made):
            await work(rig, *hosts)
            running = [each for each in [await now(clusters, each) for each in made] if each.state is ClusterState.RUNNING]
            assert 1 <= len(running) <= 4
            running.sort(key=lambda each: each.running_us or 0)
            fresh = [each for each in running if each.cluster_id not in began]
            began += [each.cluster_id for each in fresh]
            view = clusters.status(made[39])
            if (await now(clusters, made[39])).state is ClusterState.PENDING:
                assert "clusters that wait for their first worker" in str(view.waiting_for)
            for each in running:
                await clusters.close(each.cluster_id, "done")
            rig.clock.us += 1000
        await work(rig, *hosts)
        assert all([(await now(clusters, each)).state is ClusterState.CLOSED for each in made])
        order = [next(each for each in made if each.cluster_id == cluster_id) for cluster_id in began]
        for user in ("ada", "bob"):
            mine = [int(each.name[1:]) for each in order if each.user == user]
            late = [first - second for first, second in zip(mine, sorted(mine), strict=True)]
            assert max(map(abs, late)) <= 4, "first come, first served, but for who starts in the same moment"
        assert max(began.index(each.cluster_id) for each in made[40:]) < 28, "bob waits for his share, not for ada's forty"
        for host in hosts:
            assert host.most_threads <= 2
        assert await rig.ledger.slot_leases() == []
        assert clusters.book.entries == {}


@run
async def test_a_cluster_that_waits_longer_than_the_queues_head_goes_first() -> None:
    async with one_host(slots=2, nworkers=2) as (rig, host, clusters):
        running = [await rig.submit(f"r{n}") for n in range(2)]
        before = await rig.submit("before")
        rig.clock.us += 1_000_000
        record = await clusters.create(new(n_workers=2))
        rig.clock.us += 1_000_000
        after = [await rig.submit(f"after{n}") for n in range(3)]
        assert host.side is not None
        waits = clusters.status(record).waiting_for
        assert waits == "slots for 2 workers: of the 2 slots of pool 'default', 0 are lent to clusters, the rest to jobs"
        await host.side.deliver(outcome(running[0]))
        assert (await rig.job(before)).state is RunState.RUNNING, "the job was first"
        await host.side.deliver(outcome(running[1]))
        await work(rig, host)
        assert (await now(clusters, record)).state is ClusterState.RUNNING
        assert (await rig.job(after[0])).state is RunState.QUEUED
        # Its growth waits until no job does.
        host.say(outcome(before))
        await work(rig, host)
        assert clusters.status(record).workers == 1
        assert (await rig.job(after[0])).state is RunState.RUNNING
        for job in after:
            host.say(outcome(job))
            await work(rig, host)
        assert clusters.status(record).workers == 2
        last = await rig.submit("last")
        assert last.state is RunState.QUEUED
        await clusters.scale(record.cluster_id, 1)
        await work(rig, host)
        assert (await rig.job(last)).state is RunState.RUNNING


@run
async def test_a_worker_of_many_threads_gets_its_turn_beside_many_small_jobs() -> None:
    async with one_host(slots=3, nworkers=3) as (rig, host, clusters):
        assert host.side is not None
        running = [await rig.submit(f"r{n}") for n in range(3)]
        rig.clock.us += 1_000_000
        record = await clusters.create(new(n_workers=1, threads_per_worker=3))
        rig.clock.us += 1_000_000
        queued = [await rig.submit(f"q{n}") for n in range(5)]
        for job in running:
            assert (await now(clusters, record)).state is ClusterState.PENDING
            host.say(outcome(job))
            await work(rig, host)
        assert (await now(clusters, record)).state is ClusterState.RUNNING
        assert {(await rig.job(job)).state for job in queued} == {RunState.QUEUED}
        await clusters.close(record.cluster_id, "")
        await work(rig, host)
        assert [(await rig.job(job)).state for job in queued].count(RunState.RUNNING) == 3
        assert host.side.handle.promised == 0


@run
async def test_jobs_do_not_wait_where_no_cluster_waits() -> None:
    async with one_host(slots=2, nworkers=2) as (rig, host, clusters):
        await clusters.create(new(n_workers=1))
        await work(rig, host)
        assert not clusters._slots.hungry
        job = await rig.submit("a")
        assert job.state is RunState.RUNNING
        assert (await rig.submit("b")).state is RunState.QUEUED
