"""Scenario 10: a cluster whose workers are on two hosts, and a wire between them that is cut and mended.

Cut in one direction or in both. The slots beyond the wire lapse, the cluster gets others, Dask computes again what was lost;
and when the wire is whole, what the agent beyond still ran is fenced and ended, and its slots are of use again.

Most of it is waiting, for leases to end and for Dask's own time-out. So all scenes are played at the same time, each
on a pair of hosts of its own; one of them with a server that is broken on purpose, where the same checks must fail.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from tests.alive import alive
from tests.integration.core_fleet import CoreFleet
from tests.integration.namespaces import Side, two_hosts
from tests.integration.remote_agent import RemoteAgent, connected, remote_agent
from tests.prerequisites import lacking

from dask_fleet import FleetCluster

pytestmark = pytest.mark.slow

TWINS = Path(__file__).parent.parent / "promises" / "twins.py"
PATIENCE_S = 120.0
TWIN_PATIENCE_S = 30.0
"""For a twin that never gives slots up: a lease of 15 s and some more."""
HEALED_S = 30.0
DASK_NOTICES_S = 45.0
"""Dask's own time-out, longer than 30 s so that it is not over before that of a lease where the machine is slow."""
NUMBERS = 60
RIGHT = sum(n * n for n in range(NUMBERS))


@dataclass
class Scene:
    """A wire that is cut, between the host of server, scheduler, client and two workers and that of a third worker."""

    cut: tuple[str, ...]
    """Who is not heard any more."""
    twin: str | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def play(self, folder: Path) -> None:
        """Play it; raises AssertionError with what was not as it should be."""
        with two_hosts() as (here, there), here.entered():
            sides = [side for name, side in (("server", here), ("agent", there)) if name in self.cut]
            args = ("--tls", "auto", "--host", here.address, "--nworkers", "2", "--nthreads", "1", "--spare-clusters", "0")
            command = None if self.twin is None else (sys.executable, str(TWINS), self.twin)
            env = {"FLEET_JOB_SHARE": "0"}  # clusters may have all slots
            with (
                CoreFleet(folder, args=args, env=env, command=command) as fleet,
                remote_agent(fleet, folder / "far", prefix=there.prefix, args=("--name", "far")) as far,
            ):
                fleet.until(lambda: connected(fleet, "far"), "the far agent", timeout_s=PATIENCE_S)
                self._play(fleet, far, sides, folder)
                fleet.until(lambda: not living(fleet), "the cluster to close", timeout_s=60)
                fleet.until(lambda: len(all_free(fleet)) == 2, "all slots of the two agents that are left", timeout_s=60)
                fleet.until(lambda: nothing_left(far, folder), "the scratch folders to go", timeout_s=60)
                assert far.popen.poll() is None
                assert fleet.post("core/quick", {"name": "after"}, wait=30).json()["status"] == "succeeded"

    def _play(self, fleet: CoreFleet, far: RemoteAgent, sides: list[Side], folder: Path) -> None:
        where: dict[str, Any] = {"url": fleet.url, "token": fleet.token, "fingerprint": fleet.fingerprint, "quiet": True}
        with (
            FleetCluster(3, 1, config={"distributed.comm.timeouts.tcp": f"{DASK_NOTICES_S:.0f}s"}, **where) as made,
            Client(made, set_as_default=False) as client,
            # Another agent, beside the server, whose slot nobody wants yet.
            remote_agent(fleet, folder / "near", args=("--name", "near")),
        ):

            def document() -> dict[str, Any]:
                found: dict[str, Any] = fleet.request("GET", f"/v1/clusters/{made.cluster_id}").json()
                return found

            client.wait_for_workers(3, timeout=PATIENCE_S)
            before = document()
            assert not before["agent"].startswith("far-")
            workers = client.run(os.getpid)
            (old,) = [pid for pid in workers.values() if pid in beyond(far)]
            kept = client.map(lambda n: n * n, range(NUMBERS), pure=False)
            fleet.until(lambda: all(future.done() for future in kept), "data on all workers", timeout_s=PATIENCE_S)
            fleet.until(lambda: connected(fleet, "near"), "the near agent", timeout_s=PATIENCE_S)
            cut_at = cut(sides)
            try:
                total = client.submit(sum, kept, pure=False)
                patience_s = TWIN_PATIENCE_S if self.twin else PATIENCE_S
                fleet.until(lambda: slots_taken(fleet, "near"), "a slot in place of the one beyond", timeout_s=patience_s)
                self.figures["elsewhere_s"] = time.monotonic() - cut_at
                assert total.result(timeout=PATIENCE_S) == RIGHT
                self.figures["result_s"] = time.monotonic() - cut_at
                fleet.until(lambda: document()["workers"] == 3, "three workers without the one beyond", timeout_s=PATIENCE_S)
                assert connected(fleet, "far") is None
            finally:
                healed_at = heal(sides)
            fleet.until(lambda: is_free(fleet, "far"), "the far agent to be back and free", timeout_s=PATIENCE_S)
            self.figures["back_s"] = time.monotonic() - healed_at
            fleet.until(lambda: not alive([old]), "the end of the worker beyond", timeout_s=PATIENCE_S)
            fleet.until(lambda: "lapsed" in story(fleet, made), "its lapse to be told", timeout_s=PATIENCE_S)
            assert client.submit(sum, kept, pure=False).result(timeout=PATIENCE_S) == RIGHT
            after = document()
            assert (after["epoch"], after["address"], after["workers"]) == (1, before["address"], 3)
            made.scale(4)  # and what is beyond the wire is lent again
            fleet.until(lambda: slots_taken(fleet, "far"), "the slot beyond to be lent again", timeout_s=PATIENCE_S)
            client.wait_for_workers(4, timeout=PATIENCE_S)
            new = client.run(os.getpid)
            assert old not in new.values()
            ((address, old),) = [(address, pid) for address, pid in new.items() if pid in beyond(far)]
            # Dask's time-out counts from when it heard of the other last.
            assert client.submit(os.getpid, workers=[address], pure=False).result(timeout=PATIENCE_S) == old

            # Cut again, and mended as soon as its lease is over: before Dask on either side has noticed anything.
            cut(sides)
            try:
                total = client.submit(sum, kept, pure=False)
                lapsed = "action=lease_lapsed agent=far"
                fleet.until(lambda: fleet.logs().count(lapsed) == 2, "the second lapse", timeout_s=PATIENCE_S)
            finally:
                heal(sides)
            fenced = "a worker of before is ended"
            fleet.until(lambda: fenced in fleet.logs(), "the fence", timeout_s=PATIENCE_S)
            assert any(fenced in line and "action=stale_epoch agent=far" in line for line in fleet.logs().splitlines())
            fleet.until(lambda: not alive([old]), "the end of the worker that was fenced", timeout_s=PATIENCE_S)
            assert total.result(timeout=PATIENCE_S) == RIGHT
            fleet.until(lambda: slots_taken(fleet, "far") and document()["workers"] == 4, "another", timeout_s=PATIENCE_S)
            assert client.submit(sum, kept, pure=False).result(timeout=PATIENCE_S) == RIGHT
            assert (document()["epoch"], document()["address"]) == (1, before["address"])
        assert self.figures["back_s"] < HEALED_S


def cut(sides: list[Side]) -> float:
    for side in sides:
        side.cut()
    return time.monotonic()


def heal(sides: list[Side]) -> float:
    for side in sides:
        side.heal()
    return time.monotonic()


def beyond(far: RemoteAgent) -> set[int]:
    return {child.pid for child in psutil.Process(far.popen.pid).children(recursive=True)}


def living(fleet: CoreFleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.request("GET", "/v1/clusters").json()["clusters"]
    return found


def story(fleet: CoreFleet, made: FleetCluster) -> str:
    return fleet.request("GET", f"/v1/clusters/{made.cluster_id}/events").body.decode()


def agents(fleet: CoreFleet, name: str) -> list[dict[str, Any]]:
    return [agent for agent in fleet.status()["agents"] if agent["name"] == name and agent["connected"]]


def slots_taken(fleet: CoreFleet, name: str) -> bool:
    return any(agent["free"] < agent["slots"] for agent in agents(fleet, name))


def is_free(fleet: CoreFleet, name: str) -> bool:
    return any(agent["free"] == agent["slots"] for agent in agents(fleet, name))


def all_free(fleet: CoreFleet) -> list[dict[str, Any]]:
    return [agent for agent in fleet.status()["agents"] if agent["connected"] and agent["free"] == agent["slots"]]


def nothing_left(far: RemoteAgent, folder: Path) -> bool:
    return not any(list((data / "scratch").glob("*")) for data in (folder / "data", far.folder / "data"))


SCENES = {
    "agent to server": Scene(("agent",)),
    "server to agent": Scene(("server",)),
    "both": Scene(("agent", "server")),
    "endless leases": Scene(("agent",), twin="endless-leases"),
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    try:
        with two_hosts():
            pass
    except OSError as exc:
        lacking(f"no network namespaces here: {exc}")
    with ThreadPoolExecutor(len(SCENES), "scene") as pool:
        folders = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in SCENES}
        yield {name: pool.submit(scene.play, folders[name]) for name, scene in SCENES.items()}


@pytest.mark.parametrize("direction", ["agent to server", "server to agent", "both"])
def test_a_cluster_goes_on_beyond_a_cut_wire_and_gets_its_slots_back(
    played: dict[str, Future[None]], direction: str, record_property: Callable[[str, object], None]
) -> None:
    played[direction].result(500)
    figures = SCENES[direction].figures
    record_property(
        "figures",
        f"{direction} cut: another slot after {figures['elsewhere_s']:.1f} s, the result after {figures['result_s']:.1f} s,"
        f" the agent back and free {figures['back_s']:.1f} s after healing",
    )


def test_the_same_checks_notice_leases_that_never_end(played: dict[str, Future[None]]) -> None:
    with pytest.raises(AssertionError, match="in vain for a slot in place of the one beyond"):
        played["endless leases"].result(500)
