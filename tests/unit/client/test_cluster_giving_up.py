"""A `FleetCluster` that nobody waits for any more, at each step of its start: nothing is left running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.client.cluster_server import DEADLINE_S, TOKEN, Remote, status_of, until

from dask_fleet import FleetCluster
from dask_fleet.client import cluster_taking, embedded
from dask_fleet.client.cluster_key import ClusterKey
from dask_fleet.client.cluster_taking import GivenUp, Taken
from dask_fleet.client.control import ControlLink
from dask_fleet.config import Secret
from dask_fleet.config.settings import Settings
from dask_fleet.model.errors import ConnectionFailed


class Fleet:
    """Stands for an embedded one; the server is the stand-in."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(url=url, token=Secret(TOKEN))
        self.uses = 0

    def let_go(self) -> None:
        self.uses -= 1


class Step:
    """Where the start is held up, once."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def here(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(DEADLINE_S)

    def before(self, work: Callable[..., Any], *, when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def held(*args: Any, **options: Any) -> Any:
            if when(*args):
                self.here()
            return work(*args, **options)

        return held

    def after(self, work: Callable[..., Any], *, when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def held(*args: Any, **options: Any) -> Any:
            result = work(*args, **options)
            if when(*args):
                self.here()
            return result

        return held


def _method(name: str) -> Callable[..., bool]:
    return lambda _link, method, _path, *_: method == name


STEPS: dict[str, Callable[[Step], tuple[Any, str, Any]]] = {
    "the embedded fleet starts": lambda step: (embedded, "take_fleet", step.after(embedded.take_fleet)),
    "before it is asked for": lambda step: (cluster_taking, "ClusterKey", step.before(ClusterKey)),
    "as it is asked for": lambda step: (cluster_taking, "versions_here", step.before(cluster_taking.versions_here)),
    "it was asked for": lambda step: (ControlLink, "request", step.after(ControlLink.request, when=_method("POST"))),
    "it is waited for": lambda step: (ControlLink, "request", step.before(ControlLink.request, when=_method("GET"))),
    "its certificate is signed": lambda step: (Taken, "sign", step.before(Taken.sign)),
}


@pytest.fixture
def fleet(server: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    fleet = Fleet(server.url)

    def take_fleet(_: int) -> Fleet:
        fleet.uses += 1
        return fleet

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLEET_URL", raising=False)
    monkeypatch.setattr(embedded, "take_fleet", take_fleet)
    return fleet


def _is_asked_for(server: Remote, name: str) -> bool:
    state = server.state()
    if name not in state["clusters"]:
        return False
    page = f"GET /v1/clusters/{state['clusters'][name]['cluster_id']}?"
    return any(each.startswith(page) for each in state["requests"])


def _nothing_is_left(server: Remote, fleet: Fleet, name: str) -> None:
    until(lambda: not any(thread.name == "dask-fleet request" for thread in threading.enumerate()), "the start to end")
    assert server.state()["clusters"].get(name, {"status": "closed"})["status"] == "closed"
    assert fleet.uses == 0


@pytest.mark.parametrize("place", STEPS)
def test_at_each_step(place: str, server: Remote, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step()
    server.set(hold=place in ("it is waited for", "its certificate is signed"))
    monkeypatch.setattr(*STEPS[place](step))

    async def main() -> None:
        async def take() -> None:
            await FleetCluster(n_workers=1, name=place, asynchronous=True, quiet=True)

        task = asyncio.create_task(take())
        if place == "its certificate is signed":
            # Asked again after an answer without it: one that comes with the first answer is not asked for.
            while not _is_asked_for(server, place):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            server.set(hold=False)
        assert await asyncio.to_thread(step.reached.wait, DEADLINE_S)
        assert fleet.uses == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    step.go_on.set()
    _nothing_is_left(server, fleet, place)


def test_while_the_server_was_away(server: Remote, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could be given back then, but the request that is still under way comes through in the end."""
    step, close, refused = Step(), Taken.close, []

    def away(taken: Taken) -> None:
        if not refused:
            refused.append(taken)
            raise ConnectionFailed("away")
        close(taken)

    monkeypatch.setattr(ControlLink, "request", step.after(ControlLink.request, when=_method("POST")))
    monkeypatch.setattr(Taken, "close", away)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(FleetCluster(n_workers=1, name="away", asynchronous=True, quiet=True), 0.3)

    asyncio.run(main())
    assert step.reached.wait(DEADLINE_S)
    step.go_on.set()
    _nothing_is_left(server, fleet, "away")
    assert status_of(server, "away") == "closed"


def test_closed_while_it_starts(server: Remote, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step()
    monkeypatch.setattr(ControlLink, "request", step.after(ControlLink.request, when=_method("POST")))

    async def main() -> None:
        cluster = FleetCluster(n_workers=1, name="closed early", asynchronous=True, quiet=True)

        async def take() -> None:
            await cluster

        task = asyncio.create_task(take())
        assert await asyncio.to_thread(step.reached.wait, DEADLINE_S)
        await cluster.close()
        step.go_on.set()
        with pytest.raises(GivenUp, match="closed before it ran"):
            await task
        await cluster.close()

    asyncio.run(main())
    _nothing_is_left(server, fleet, "closed early")
    assert status_of(server, "closed early") == "closed"
