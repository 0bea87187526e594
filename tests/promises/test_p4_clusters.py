"""P4 for clusters: whatever is of an earlier epoch changes nothing, holds no slot, and is ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from tests.promises.form import FULL, Record, Serve
from tests.promises.latecomers import Latecomers, thirds

from dask_fleet.protocol.cluster_frames import (
    CloseCluster,
    ClusterGone,
    ClusterOpened,
    ClusterRef,
    GrantSlots,
    OpenCluster,
    SlotsJoined,
    SlotsLeft,
    TakeSlots,
)
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

CLUSTERS = 120 if FULL else 24  # a third at each of three moments
FIRST, SECOND = "tls://192.0.2.1:1", "tls://192.0.2.2:2"


@dataclass(frozen=True)
class Verdict:
    """What came of an agent that was given up, and came back with its schedulers and workers."""

    late: int
    """Clusters that it spoke of."""
    taken: int
    """Those whose scheduler is not that of the second epoch any more."""
    ended: int
    """Schedulers and workers of the first epoch that it was told to end."""
    logged: int
    """``stale_epoch`` in the server's log."""


async def haunt(fleet: ServedFleet, *, is_fenced: bool) -> tuple[int, int]:
    """Open epoch 1 of every cluster on an agent that vanishes, epoch 2 on its successor, and let the first come back.

    A third of what the zombie has to say arrives before the second epoch has come up, a third when its worker is still on
    the way, a third once all is there; the last third also says that its scheduler has ended.

    Its slots are free again once it has let go of all (in a twin, nothing of that is certain).

    Returns
    -------
    taken, ended
        As of the `Verdict`.
    """
    agents, third = Latecomers(fleet, CLUSTERS), CLUSTERS // 3

    async with agents.first() as first:
        ids = await asyncio.to_thread(_make_all, fleet)
        for frame in await first.take(OpenCluster, CLUSTERS):
            await first.send(ClusterOpened(frame.cluster, frame.epoch, FIRST, "", b"ca"))
        old = {grant.cluster: grant.lease for grant in await first.take(GrantSlots, CLUSTERS)}
        await first.send(*(SlotsJoined(lease, FIRST) for lease in old.values()))
        await asyncio.to_thread(fleet.until, lambda: _workers(fleet) == CLUSTERS, "the first epoch", timeout_s=60)

    order = sorted(ids)
    early, between, late = thirds(order)

    def says(clusters: list[str]) -> list[ClusterOpened | SlotsJoined]:
        return [
            *(ClusterOpened(cluster, 1, FIRST, "", b"ca") for cluster in clusters),
            *(SlotsJoined(old[cluster], FIRST) for cluster in clusters),
        ]

    async with agents.second() as second:
        await second.ready()
        opens = await second.take(OpenCluster, CLUSTERS)
        grants = await second.take(GrantSlots, CLUSTERS)
        assert {frame.epoch for frame in opens} == {2}
        assert not {grant.lease for grant in grants} & set(old.values())
        refs = [ClusterRef(cluster, 1) for cluster in order]
        async with agents.zombie(clusters=refs, leases=list(old.values())) as zombie:
            ended = len(await zombie.take(TakeSlots, CLUSTERS))  # frames come in order: the schedulers' came before
            await zombie.send(*says(early))
            ended += len(await zombie.take(TakeSlots, third))
            await second.send(*(ClusterOpened(frame.cluster, 2, SECOND, "", b"ca") for frame in opens))
            await zombie.send(*says(between))
            ended += len(await zombie.take(TakeSlots, third))
            await second.send(*(SlotsJoined(grant.lease, SECOND) for grant in grants))
            await asyncio.to_thread(fleet.until, lambda: _workers(fleet) == CLUSTERS, "the second epoch", timeout_s=60)
            await zombie.send(*(ClusterGone(cluster, 1, "closed") for cluster in late), *says(late))
            ended += len(await zombie.take(TakeSlots, third)) + len(zombie.heard(CloseCluster))
            taken = sum(frame["epoch"] != 2 or frame["address"] != SECOND for frame in _clusters(fleet))
            if is_fenced:
                await zombie.send(*(SlotsLeft(lease, "taken back") for lease in old.values()))
                await asyncio.to_thread(fleet.until, lambda: _held_slots(fleet, "local-first") == 0, "its slots to be free")
    return taken, ended


def _make_all(fleet: ServedFleet) -> list[str]:
    with fleet.connect() as connection:
        answers = [connection.request("POST", "/v1/clusters", {"n_workers": 1, "name": f"c{n}"}) for n in range(CLUSTERS)]
    assert {answer.status for answer in answers} <= {201, 202}, answers[0]
    return [answer.json()["cluster_id"] for answer in answers]


def _clusters(fleet: ServedFleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.request("GET", "/v1/clusters").json()["clusters"]
    return found


def _workers(fleet: ServedFleet) -> int:
    return sum(cluster["workers"] for cluster in _clusters(fleet) if cluster["status"] == "running")


def _held_slots(fleet: ServedFleet, agent: str) -> int:
    (found,) = [one for one in fleet.status()["agents"] if one["agent"] == agent]
    return int(found["slots"] - found["free"])


def judge(fleet: ServedFleet, *, is_fenced: bool) -> Verdict:
    with fleet:
        taken, ended = asyncio.run(haunt(fleet, is_fenced=is_fenced))
        fleet.terminate()
    logged = (fleet.data_dir / "serve.err").read_text().count("action=stale_epoch")
    return Verdict(late=CLUSTERS, taken=taken, ended=ended, logged=logged)


OPTIONS = {"args": ("--no-agent",), "env": {"FLEET_MAX_CLUSTERS_PER_USER": str(CLUSTERS), "FLEET_JOB_SHARE": "0"}}


def test_nothing_of_an_earlier_epoch_is_taken(serve: Serve, record_property: Record) -> None:
    """Scenario 9: every scheduler and worker of before is refused, logged and ended, both when it is told of and later."""
    verdict = judge(serve(**OPTIONS), is_fenced=True)
    record_property("figures", str(verdict))
    assert verdict == Verdict(late=CLUSTERS, taken=0, ended=4 * CLUSTERS, logged=4 * CLUSTERS)


def test_the_checker_notices_that_epochs_are_not_looked_at(serve: Serve, record_property: Record) -> None:
    verdict = judge(serve(twin="no-epoch", **OPTIONS), is_fenced=False)
    record_property("figures", str(verdict))
    assert verdict.taken > 0
