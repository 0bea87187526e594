"""Clusters of an agent as its server asks for them: every frame, on real processes."""

from __future__ import annotations

from pathlib import Path

from tests.integration.agent.fake_server import fleet, run, until
from tests.integration.clusters.drive import Clusters, scratch


def test_a_cluster_is_opened_used_and_closed(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet(tmp_path / "data", nworkers=2, spares=1) as (server, _agent):
            clusters = Clusters(server)
            cluster = await clusters.open()
            fresh = await clusters.grant(cluster, fresh=True)
            shared = await clusters.grant(cluster, fresh=False)
            async with await clusters.client(cluster) as client:
                assert await client.submit(sum, [1, 2, 3]) == 6
                assert len((await client.scheduler.identity())["workers"]) == 2
            assert len(scratch(tmp_path / "data")) == 2
            assert (await clusters.take(fresh)).why == "taken back"
            await clusters.take(shared)
            assert (await clusters.close(cluster)).why == "closed"
            assert scratch(tmp_path / "data") == []
            await until(lambda: server.connected)

    run(main)
