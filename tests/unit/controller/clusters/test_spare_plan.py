"""Which spare clusters there should be: the decisions, without clusters."""

from __future__ import annotations

from typing import Any

import pytest

from dask_fleet.controller.clusters.capacity import Host
from dask_fleet.controller.clusters.placing import Need
from dask_fleet.controller.clusters.spare_plan import (
    ACTIVE_S,
    MOST_WORKERS,
    Asked,
    Kept,
    Room,
    compare,
    fits,
    gives_way,
    place,
    spec_for,
    wanted_now,
)
from dask_fleet.model.clusters import ClusterAccess, ClusterSpec


def spec(n_workers: int = 2, **more: Any) -> ClusterSpec:
    return ClusterSpec(n_workers=n_workers, **more)


def room(slots: int, *, free: int | None = None, takes_jobs: bool = False, agent: str = "a") -> Room:
    host = Host(agent, pool="default", slots=slots, nthreads=1, free=slots if free is None else free)
    return Room(host, takes_jobs=takes_jobs)


@pytest.mark.parametrize("difference", [
    {"threads_per_worker": 2}, {"resources": {"GPU": 1.0}}, {"pool": "other"}, {"config": {"a": 1}}, {"preload": ("m",)},
    {"scheduler_preload": ("m",)}, {"memory_limit_bytes": 1 << 30}, {"dashboard": False}, {"shared": True},
])  # fmt: skip
def test_what_cannot_be_changed_any_more_must_be_equal(difference: dict[str, Any]) -> None:
    assert not fits(spec(), spec(**difference))


def test_what_is_changed_when_it_is_handed_out_may_differ() -> None:
    wanted = spec(7, idle_timeout_s=1.0, max_lifetime_s=2.0, shutdown_on_close=False, access=ClusterAccess.TENANT)
    assert fits(spec(), wanted)
    assert not fits(spec(), spec(shared=True)), "what shares processes is not served by a fresh one"


def test_who_asked_last_comes_first_and_who_is_away_gets_none() -> None:
    ada, bob, eve = Asked("ada", spec(), 2000.0), Asked("bob", spec(), 2010.0), Asked("eve", spec(), 2010.0 - ACTIVE_S - 1)
    now = 2010.0
    assert wanted_now([ada, bob, eve], per_pool=1, now=now) == [bob]
    assert wanted_now([ada, bob, eve], per_pool=3, now=now) == [bob, ada, bob]
    assert wanted_now([eve], per_pool=2, now=now) == []
    assert wanted_now([ada], per_pool=0, now=now) == []


def test_a_spare_is_for_its_tenant_only_and_kept_while_it_does() -> None:
    mine, theirs = Kept("c1", "ada", spec(1)), Kept("c2", "bob", spec())
    assert compare([Asked("ada", spec(5), 0)], [mine]) == ([], [])
    assert compare([Asked("ada", spec(), 0)], [theirs]) == ([Asked("ada", spec(), 0)], [theirs])
    other_shape = Asked("ada", spec(threads_per_worker=2), 0)
    assert compare([other_shape], [mine]) == ([other_shape], [mine])


def test_it_is_as_large_as_asked_for_as_the_pool_or_as_the_most() -> None:
    def workers(asked: int, *rooms: Room, threads: int = 1) -> int | None:
        found = spec_for(spec(asked, threads_per_worker=threads), rooms)
        return None if found is None else found.n_workers

    assert workers(2, room(8)) == 2
    assert workers(100, room(200)) == MOST_WORKERS
    assert workers(2, room(2, takes_jobs=True)) == 1, "a slot is left for jobs"
    assert workers(1, room(1, takes_jobs=True)) is None
    assert workers(2, room(1), room(1, agent="b")) == 2
    assert workers(2, room(3), threads=4) is None
    assert workers(0, room(1, takes_jobs=True)) == 0, "a scheduler alone takes no slots"
    never = spec_for(spec(idle_timeout_s=1.0, max_lifetime_s=1.0), [room(4)])
    assert never is not None
    assert (never.idle_timeout_s, never.max_lifetime_s) == (None, None)


def test_it_is_placed_whole_or_not_at_all() -> None:
    assert place(spec(2), [room(4)]) == ["a", "a"]
    assert place(spec(2), [room(4, free=1)]) is None
    assert place(spec(2), [room(4, free=2, takes_jobs=True)]) is None
    assert place(spec(2), [room(4, free=1), room(4, free=2, agent="b")]) == ["b", "b"], "beside each other where they can"
    assert place(spec(2), [room(4, free=1), room(4, free=1, agent="b")]) == ["b", "a"]
    assert place(spec(0), []) == []
    assert place(spec(1), []) is None


def test_as_few_give_way_as_will_do() -> None:
    spares = [Kept("c1", "ada", spec(), 2), Kept("c2", "bob", spec(), 2), Kept("c3", "bob", spec(), 2)]
    pools = {"c1": "default", "c2": "default", "c3": "other"}

    def closed(missing: int, free: int = 0, pool: str = "default") -> list[str]:
        need = Need("c9", ("ada", "ada"), pool, threads=1, missing=missing, since=0.0)
        return gives_way(spares, [need], {"default": free, "other": 0}, pools)

    assert closed(1) == ["c1"]
    assert closed(3) == ["c1", "c2"]
    assert closed(3, free=1) == ["c1"]
    assert closed(1, free=1) == ["c1"], "what is free is of no use to it: it is split over agents"
    assert closed(9) == ["c1", "c2"]
    assert closed(9, pool="other") == ["c3"]
    assert closed(9, pool="none") == []
