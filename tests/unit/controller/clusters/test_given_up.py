"""What was given up, and turns up again before a full ledger could record that: it is ended, and its slots stay taken until
it has.
"""

from __future__ import annotations

from tests.unit.controller.clusters.hosts import FaultyLedger, Host, new, now, work
from tests.unit.controller.rig import HandClock, Rig, run

from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.protocol.cluster_frames import GrantSlots, OpenCluster


def full_later() -> tuple[FaultyLedger, Rig]:
    clock = HandClock()
    ledger = FaultyLedger(clock=clock)
    return ledger, Rig(ledger=ledger, clock=clock)


async def ends_clean(rig: Rig, cluster_id: str, *hosts: Host) -> None:
    """What must be true of a cluster and its agents once the ledger can be written again, and after its end."""
    for _ in range(3):
        await rig.advance(16)
        await work(rig, *hosts)
    clusters = rig.controller.clusters
    record = await clusters.wait(cluster_id, 0)
    assert record.state is ClusterState.RUNNING
    assert clusters.status(record).workers == record.spec.n_workers
    assert sum(len(host.schedulers) for host in hosts) == 1, "and not the one that was given up"
    assert sum(len(host.workers) for host in hosts) == record.spec.n_workers
    await clusters.close(cluster_id, "the end")
    await work(rig, *hosts)
    assert [(host.schedulers, host.workers) for host in hosts] == [(set(), {})] * len(hosts)
    assert [handle.leased for handle in rig.controller.agents] == [0] * len(hosts)


@run
async def test_a_scheduler_that_came_up_too_late_and_was_not_told() -> None:
    """As Hypothesis found it: its agent read that it was to open, but lost the connection before it read that it is over."""
    ledger, rig = full_later()
    async with rig:
        hosts = [Host(rig, agent).connect() for agent in ("one-a", "two-a")]
        record = await now(rig.controller.clusters, await rig.controller.clusters.create(new(n_workers=0)))
        await rig.settle()
        host = next(each for each in hosts if each.side is not None and each.side.got(OpenCluster))
        await rig.advance(31)
        ledger.is_full = True
        await rig.advance(31)
        assert host.side is not None
        host.do(host.side.got(OpenCluster)[0])
        host.disconnect()
        host.connect()
        ledger.is_full = False
        await ends_clean(rig, record.cluster_id, *hosts)


@run
async def test_a_scheduler_that_is_opened_again_after_its_end() -> None:
    """The frame that asks for it was under way twice."""
    ledger, rig = full_later()
    async with rig:
        host = Host(rig, "one-a").connect()
        record = await rig.controller.clusters.create(new(n_workers=1))
        await work(rig, host)
        ledger.is_full = True
        host.end_scheduler(record.cluster_id, 1, "killed")
        host.ended.clear()  # an agent does not remember for ever what it had
        host.do(host.got(OpenCluster)[0])
        await work(rig, host)
        assert host.schedulers == set(), "ended at once, not when the ledger can be written"
        ledger.is_full = False
        await ends_clean(rig, record.cluster_id, host)


@run
async def test_a_worker_that_is_back_after_it_had_left() -> None:
    """Its lease ends, but its slot is nobody's while it runs: neither over the connection nor after a new one."""
    for reconnects in (False, True):
        ledger, rig = full_later()
        async with rig:
            host = Host(rig, "one-a", slots=1).connect()
            record = await rig.controller.clusters.create(new(n_workers=1))
            await work(rig, host)
            ledger.is_full = True
            host.lose_worker(next(iter(host.workers)))
            if reconnects:
                host.disconnect()
            host.ended.clear()
            host.do(host.got(GrantSlots)[0])
            if reconnects:
                host.connect()
            ledger.is_full = False
            await rig.advance(16)
            assert host.side is not None
            assert len(host.workers) == 1, "it has not read that it must go"
            assert host.side.handle.free <= 0
            assert not host.side.got(GrantSlots), "its slot is not given to another one yet"
            await ends_clean(rig, record.cluster_id, host)
            assert host.most_threads == 1
