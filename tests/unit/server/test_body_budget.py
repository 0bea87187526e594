"""Large bodies wait for room, give way to others, and give back what they have whatever becomes of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from dask_fleet.model.errors import CapacityError
from dask_fleet.server import body_budget
from dask_fleet.server.body import ClientDisconnectedError, read_body
from dask_fleet.server.body_budget import BodyBudget
from dask_fleet.server.shares import STEP_BYTES

JSON = (b"content-type", b"application/json")
STEPS = 8
PATIENCE_S = 20.0


class Client:
    """Sends a step of a body whenever it is told to."""

    def __init__(self, budget: BodyBudget, user: str, *, announced: int = 0) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        headers = [JSON] + [(b"content-length", b"%d" % announced)] * bool(announced)
        self.task = asyncio.create_task(
            read_body({"headers": headers}, self.messages.get, limit=1 << 30, user=user, budget=budget), name=user
        )

    def send(self, steps: int, *, more: bool = True) -> None:
        for number in range(steps):
            last = not more and number == steps - 1
            self.messages.put_nowait({"type": "http.request", "body": b" " * STEP_BYTES, "more_body": not last})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0.005)


def held(budget: BodyBudget) -> int:
    steps: int = budget.figures()["large_body_bytes"] // STEP_BYTES
    return steps


def waiting(budget: BodyBudget) -> int:
    count: int = budget.figures()["large_bodies_waiting"]
    return count


def run(scene: Callable[[BodyBudget], Any], **how: float) -> BodyBudget:
    """Play a scene; whatever happened, everything must have come back."""

    async def main() -> BodyBudget:
        budget = BodyBudget(STEPS * STEP_BYTES, **how)
        async with asyncio.timeout(60):
            await scene(budget)
        assert (held(budget), waiting(budget), budget._receiving, budget._timer) == (0, 0, {}, None)
        return budget

    return asyncio.run(main())


def test_who_announces_much_and_falls_silent_is_in_nobodys_way() -> None:
    async def scene(budget: BodyBudget) -> None:
        silent = [Client(budget, "ann", announced=1 << 29) for _ in range(3)]
        for client in silent:
            client.send(2)
        await until(lambda: held(budget) == 6)
        honest = Client(budget, "bob")
        honest.send(4, more=False)
        assert len(await honest.task) == 4 * STEP_BYTES
        for client in silent:
            client.leave()
        for each in await asyncio.gather(*(client.task for client in silent), return_exceptions=True):
            assert isinstance(each, ClientDisconnectedError)

    assert sum(run(scene).refused.values()) == 0


def test_the_slow_give_way_to_one_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(budget: BodyBudget) -> None:
        silent = [Client(budget, "ann") for _ in range(6)]
        for client in silent:
            client.send(2)
        await until(lambda: waiting(budget))
        honest = Client(budget, "ann")
        honest.send(4, more=False)
        assert len(await honest.task) == 4 * STEP_BYTES
        for client in silent:
            client.leave()
        refused = 0
        for found in await asyncio.gather(*(client.task for client in silent), return_exceptions=True):
            if isinstance(found, CapacityError):
                refused += 1
                assert (found.retryable, found.status, found.retry_after_s) == (True, 503, 2)
                assert "slowly" in found.detail
        assert refused == budget.refused["slow"] >= 1

    with caplog.at_level(logging.WARNING):
        run(scene)
    told = [record for record in caplog.records if getattr(record, "action", "") == "bodies_refused"]
    assert len(told) == 1, "one line for all of a while"
    assert told[0].why == "slow"  # type: ignore[attr-defined]


def test_another_user_who_holds_all_gives_way_whatever_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(budget: BodyBudget) -> None:
        elder, large = Client(budget, "zoe"), Client(budget, "ann")
        elder.send(2)
        await until(lambda: held(budget) == 2)
        large.send(STEPS)
        await until(lambda: held(budget) == 2 + STEPS)
        honest = Client(budget, "bob")
        honest.send(3, more=False)
        assert len(await honest.task) == 3 * STEP_BYTES
        with pytest.raises(CapacityError, match="half"):
            await large.task
        elder.send(STEPS, more=False)
        assert len(await elder.task) == (2 + STEPS) * STEP_BYTES

    monkeypatch.setattr("dask_fleet.server.shares.SLOW_AFTER_S", 1e9)
    assert run(scene).refused == {"slow": 0, "share": 1, "patience": 0}


def test_whoever_waits_too_long_is_asked_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(budget: BodyBudget) -> None:
        clients = [Client(budget, "ann") for _ in range(3)]
        clients[0].send(3)
        clients[1].send(STEPS)
        await until(lambda: held(budget) >= STEPS)
        clients[2].send(2)
        with pytest.raises(CapacityError, match="again") as caught:
            await clients[2].task
        assert caught.value.retry_after_s == 1
        for client in clients[:2]:
            client.send(1, more=False)
            await client.task

    monkeypatch.setattr("dask_fleet.server.shares.SLOW_AFTER_S", 1e9)
    assert run(scene, patience_s=0.05).refused["patience"] == 1


@pytest.mark.parametrize("how", ["cancelled while it waits", "cancelled with its turn", "left", "cancelled"])
def test_whoever_ends_gives_everything_back_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(budget: BodyBudget) -> None:
        first, second, third = (Client(budget, "ann") for _ in range(3))
        first.send(2)
        await until(lambda: held(budget) == 2)
        second.send(STEPS)
        await until(lambda: held(budget) == 2 + STEPS)
        third.send(3)
        await until(lambda: waiting(budget) == 1)
        if how == "left":
            second.leave()
        elif how == "cancelled":
            second.task.cancel()
        elif how == "cancelled with its turn":
            second.task.cancel()
            await until(lambda: not waiting(budget))
            third.task.cancel()
        else:
            third.task.cancel()
            await until(lambda: not waiting(budget))
        for client in (first, second, third):
            client.send(1, more=False)
        await asyncio.gather(*(client.task for client in (first, second, third)), return_exceptions=True)

    monkeypatch.setattr("dask_fleet.server.shares.SLOW_AFTER_S", 1e9)
    run(scene)


def test_what_is_said_to_who_gives_way_waits_for_nothing() -> None:
    """Told in the very moment in which its next piece, or its last, comes: it ends with the same words."""

    async def scene(budget: BodyBudget) -> None:
        for more in (True, False):
            clients = [Client(budget, "ann") for _ in range(6)]
            for client in clients:
                client.send(2)
            await until(lambda: waiting(budget))
            victims = []
            end = body_budget.Reservation.end

            def spy(place: body_budget.Reservation, end: Any = end, victims: list[Any] = victims) -> None:
                victims.append(place)
                end(place)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(body_budget.Reservation, "end", spy)
                budget._now_s += 100  # it is slow at the next look
                budget._look()
                assert len(victims) == 1
                for client in clients:
                    client.send(1, more=more)
                await asyncio.wait([client.task for client in clients], return_when=asyncio.FIRST_COMPLETED)
            for client in clients:
                client.send(1, more=False)
            found = await asyncio.gather(*(client.task for client in clients), return_exceptions=True)
            assert any(isinstance(each, CapacityError) for each in found)

    run(scene)


def test_a_pause_of_the_process_makes_nobody_slow() -> None:
    async def scene(budget: BodyBudget) -> None:
        loop = asyncio.get_running_loop()
        before = budget._clock()
        budget._seen_s = loop.time() - 1_000
        assert budget._clock() - before <= 1

    run(scene)
