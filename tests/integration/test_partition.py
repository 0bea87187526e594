"""Server and agent on two hosts, and a wire between them that fails in one direction at a time.

What the agent runs meanwhile is run elsewhere once its lease is over; when the wire is whole again, the agent learns that,
ends what it still runs, and works on. Each job has one result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.core_fleet import CoreFleet
from tests.integration.namespaces import Side, two_hosts
from tests.integration.remote_agent import RemoteAgent, connected, remote_agent

HEALED_S = 30.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Side, Side]]:
    try:
        context = two_hosts()
        sides = context.__enter__()
    except OSError as exc:
        pytest.skip(f"no network namespaces here: {exc}")
    try:
        yield sides
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def fleet(hosts: tuple[Side, Side], tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreFleet]:
    here, _ = hosts
    args = ("--no-agent", "--tls", "auto", "--host", here.address)
    with here.entered(), CoreFleet(tmp_path_factory.mktemp("partition"), args=args) as made:
        assert made.url.startswith(f"https://{here.address}:")
        yield made


@pytest.fixture(scope="module")
def far(fleet: CoreFleet, hosts: tuple[Side, Side], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteAgent]:
    folder = tmp_path_factory.mktemp("far")
    with remote_agent(fleet, folder, prefix=hosts[1].prefix, args=("--name", "far")) as agent:
        fleet.until(lambda: connected(fleet, "far"), "the far agent", timeout_s=40)
        yield agent


def test_it_works_over_the_wire(fleet: CoreFleet, far: RemoteAgent) -> None:
    assert fleet.post("core/quick", {"name": "far"}, wait=30).json()["status"] == "succeeded"
    job = fleet.post("core/large", {"name": "far", "size": 20_000_000}).json()["job_id"]
    assert fleet.ended(job)["status"] == "succeeded"
    assert len(fleet.request("GET", f"/v1/jobs/{job}/result").body) == 20_000_000
    assert far.popen.poll() is None


@pytest.mark.parametrize("direction", ["agent to server", "server to agent"])
def test_a_wire_that_fails_one_way(
    fleet: CoreFleet,
    far: RemoteAgent,
    hosts: tuple[Side, Side],
    tmp_path: Path,
    direction: str,
    record_property: Callable[[str, object], None],
) -> None:
    here, there = hosts
    sender = there if direction == "agent to server" else here
    name = direction.replace(" ", "-")
    zombie_finishes = sender is there
    job = fleet.post("core/gated", {"name": name}).json()["job_id"]
    fleet.until_started(name)
    stale = fleet.status()["stale_outcomes"]
    refused = fleet.logs().count("stale_epoch")
    # Another agent, beside the server, has nothing to do yet.
    with remote_agent(fleet, tmp_path, args=("--name", "near", "--orphan-timeout", "60s")):
        fleet.until(lambda: connected(fleet, "near"), "the near agent", timeout_s=40)
        sender.cut()
        try:
            cut_at = time.monotonic()
            fleet.until_started(name, 2, timeout_s=60)
            elsewhere_s = time.monotonic() - cut_at
            fleet.until(lambda: connected(fleet, "far") is None, "the far agent to be given up")
            if zombie_finishes:
                # Both the zombie's attempt and the one elsewhere end: only the latter counts.
                fleet.open_gate(name)
                assert fleet.ended(job)["status"] == "succeeded"
        finally:
            sender.heal()
        healed_at = time.monotonic()
        fleet.until(lambda: connected(fleet, "far"), "the far agent to be back", timeout_s=60)
        back_s = time.monotonic() - healed_at
        fleet.until(lambda: fleet.status()["stale_outcomes"] > stale, "the zombie's outcome to be refused", timeout_s=60)
        fleet.until(lambda: fleet.logs().count("stale_epoch") > refused, "the log of it")
        fleet.until(lambda: idle(connected(fleet, "far")), "the zombie attempt to end", timeout_s=60)
        if not zombie_finishes:
            assert fleet.job(job)["status"] == "running"
            fleet.open_gate(name)
            assert fleet.ended(job)["status"] == "succeeded"
    assert back_s < HEALED_S
    assert fleet.starts(name) == 2
    assert fleet.states(job) == ["lost", "succeeded"]
    assert fleet.events(job).count("succeeded") == 1
    assert far.popen.poll() is None
    fleet.until(lambda: idle(connected(fleet, "far")), "the far agent to be free")
    assert fleet.post("core/quick", {"name": f"after {name}"}, wait=30).json()["status"] == "succeeded"
    record_property("figures", f"{direction} cut: elsewhere after {elsewhere_s:.1f} s, back {back_s:.1f} s after healing")


def idle(agent: dict[str, Any] | None) -> bool:
    return agent is not None and agent["held"] == 0 and agent["free"] == agent["slots"]
