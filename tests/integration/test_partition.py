"""Server and agent on two hosts, and a wire between them that fails in one direction at a time.

What the agent runs meanwhile is run elsewhere once its lease is over; when the wire is whole again, the agent learns that,
ends what it still runs, and works on. Each job has one result.

Most of it is waiting for leases to end. So all scenes are played at the same time, each on a pair of hosts of its own; two
of them with a server that is broken on purpose, where the same checks must fail.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.integration.core_fleet import CoreFleet
from tests.integration.namespaces import Side, two_hosts
from tests.integration.remote_agent import RemoteAgent, connected, remote_agent
from tests.prerequisites import lacking

TWINS = Path(__file__).parent.parent / "promises" / "twins.py"
HEALED_S = 30.0
ELSEWHERE_S = 60.0
TWIN_ELSEWHERE_S = 25.0
"""For a twin that never runs anything elsewhere: a lease of 15 s and some more."""


@dataclass
class Scene:
    """A wire that fails in one direction, between a server and the agent that runs its job."""

    direction: str
    twin: str | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def play(self, folder: Path) -> None:
        """Play it; raises AssertionError with what was not as it should be."""
        with two_hosts() as (here, there), here.entered():
            args = ("--no-agent", "--tls", "auto", "--host", here.address)
            command = None if self.twin is None else (sys.executable, str(TWINS), self.twin)
            with (
                CoreFleet(folder, args=args, command=command) as fleet,
                remote_agent(fleet, folder / "far", prefix=there.prefix, args=("--name", "far")) as far,
            ):
                assert fleet.url.startswith(f"https://{here.address}:")
                fleet.until(lambda: connected(fleet, "far"), "the far agent", timeout_s=60)
                works_over_the_wire(fleet)
                self._fail(fleet, far, *((there, True) if self.direction == "agent to server" else (here, False)), folder)

    def _fail(self, fleet: CoreFleet, far: RemoteAgent, sender: Side, zombie_finishes: bool, folder: Path) -> None:
        job = fleet.post("core/numbered", {"name": "one"}).json()["job_id"]
        fleet.until_started("one")
        # Another agent, beside the server, has nothing to do yet.
        with remote_agent(fleet, folder / "near", args=("--name", "near", "--orphan-timeout", "60s")):
            fleet.until(lambda: connected(fleet, "near"), "the near agent", timeout_s=60)
            sender.cut()
            try:
                cut_at = time.monotonic()
                patience_s = TWIN_ELSEWHERE_S if self.twin == "endless-leases" else ELSEWHERE_S
                fleet.until_started("one", 2, timeout_s=patience_s)
                self.figures["elsewhere_s"] = time.monotonic() - cut_at
                fleet.until(lambda: connected(fleet, "far") is None, "the far agent to be given up")
                if zombie_finishes:  # while what is to count still runs
                    fleet.open_gate("one-1")
                    fleet.until(lambda: fleet.starts("one-1 ended"), "the zombie attempt to succeed")
            finally:
                sender.heal()
            healed_at = time.monotonic()
            fleet.until(lambda: connected(fleet, "far"), "the far agent to be back", timeout_s=60)
            self.figures["back_s"] = time.monotonic() - healed_at
            fleet.until(lambda: idle(connected(fleet, "far")), "the zombie attempt to end", timeout_s=60)
            fleet.until(
                lambda: fleet.status()["stale_outcomes"] or fleet.job(job)["status"] != "running",
                "the zombie's outcome to arrive",
                timeout_s=60,
            )
            assert fleet.job(job)["status"] == "running", "the zombie's end counted as the job's"
            fenced = fleet.until(lambda: refused_outcomes(fleet), "the log of its refusal")
            assert all(" attempt=1 " in line for line in fenced), fenced
            assert not zombie_finishes or any(" state=succeeded" in line for line in fenced), fenced
            fleet.open_gate("one-2")
            assert fleet.ended(job)["status"] == "succeeded"
        assert fleet.request("GET", f"/v1/jobs/{job}/result").json() == 2, "the result is that of the second attempt"
        assert self.figures["back_s"] < HEALED_S
        assert fleet.starts("one") == 2
        assert fleet.states(job) == ["lost", "succeeded"]
        assert fleet.events(job).count("succeeded") == 1
        assert far.popen.poll() is None
        fleet.until(lambda: idle(connected(fleet, "far")), "the far agent to be free")
        assert fleet.post("core/quick", {"name": "after"}, wait=30).json()["status"] == "succeeded"


def refused_outcomes(fleet: CoreFleet) -> list[str]:
    """Return what the server's log says of outcomes that came too late."""
    return [line for line in fleet.logs().splitlines() if "late outcome refused" in line and "stale_epoch" in line]


def works_over_the_wire(fleet: CoreFleet) -> None:
    assert fleet.post("core/quick", {"name": "far"}, wait=30).json()["status"] == "succeeded"
    job = fleet.post("core/large", {"name": "far", "size": 20_000_000}).json()["job_id"]
    assert fleet.ended(job)["status"] == "succeeded"
    assert len(fleet.request("GET", f"/v1/jobs/{job}/result").body) == 20_000_000


def idle(agent: dict[str, Any] | None) -> bool:
    return agent is not None and agent["held"] == 0 and agent["free"] == agent["slots"]


SCENES = {
    "agent to server": Scene("agent to server"),
    "server to agent": Scene("server to agent"),
    "endless leases": Scene("agent to server", twin="endless-leases"),
    "no fence": Scene("agent to server", twin="no-fence"),
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


@pytest.mark.parametrize("direction", ["agent to server", "server to agent"])
def test_a_wire_that_fails_one_way(
    played: dict[str, Future[None]], direction: str, record_property: Callable[[str, object], None]
) -> None:
    played[direction].result(240)
    figures = SCENES[direction].figures
    record_property(
        "figures",
        f"{direction} cut: elsewhere after {figures['elsewhere_s']:.1f} s, back {figures['back_s']:.1f} s after healing",
    )


def test_the_same_checks_notice_leases_that_never_end(played: dict[str, Future[None]]) -> None:
    with pytest.raises(AssertionError, match="in vain for start 2 of one"):
        played["endless leases"].result(240)


def test_the_same_checks_notice_a_missing_fence(played: dict[str, Future[None]]) -> None:
    with pytest.raises(AssertionError, match="the zombie's end counted as the job's"):
        played["no fence"].result(240)
