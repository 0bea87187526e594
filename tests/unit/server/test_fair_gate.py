"""A gate before which users have their turns."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dask_fleet.model.errors import CapacityError
from dask_fleet.server.fair_gate import FairGate


class Crowd:
    """Users who come, stay until they are let go, and are noted as they get in."""

    def __init__(self, gate: FairGate) -> None:
        self.gate = gate
        self.inside: list[str] = []
        self.order: list[str] = []
        self._free: dict[str, asyncio.Event] = {}

    def come(self, user: str, number: int = 0) -> asyncio.Task[None]:
        async def visit() -> None:
            name = f"{user}{number}"
            leave = self._free[name] = asyncio.Event()
            async with self.gate.place(user):
                self.inside.append(name)
                self.order.append(name)
                await leave.wait()
            self.inside.remove(name)

        return asyncio.create_task(visit(), name=f"{user}{number}")

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def let_go(self, name: str) -> None:
        self._free[name].set()
        await self.settle()

    async def all_go(self) -> None:
        while self.inside:
            await self.let_go(self.inside[0])


def make(places: int = 4, per_user: int = 2, patience_s: float = 60.0) -> FairGate:
    return FairGate(places, per_user=per_user, patience_s=patience_s, refusal="full")


def test_one_user_has_some_of_the_places_and_users_have_turns() -> None:
    async def main() -> None:
        crowd = Crowd(make())
        tasks = [crowd.come("a", number) for number in range(6)]
        await crowd.settle()
        assert crowd.inside == ["a0", "a1"]
        tasks += [crowd.come("b", number) for number in range(4)]
        await crowd.settle()
        assert crowd.inside == ["a0", "a1", "b0", "b1"]
        tasks.append(crowd.come("c"))
        await crowd.settle()
        await crowd.let_go("a0")
        assert crowd.order[4:] == ["a2"], "it had waited longer than c"
        await crowd.let_go("b0")
        assert crowd.order[5:] == ["b2"]
        await crowd.let_go("a1")
        assert crowd.order[6:] == ["c0"]
        await crowd.all_go()
        await asyncio.gather(*tasks)
        assert len(crowd.order) == 11
        assert (crowd.gate._free, crowd.gate.waiting(), len(crowd.gate._inside)) == (4, 0, 0)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_who_gives_up_is_forgotten_and_lets_others_pass(how: str) -> None:
    async def main() -> None:
        gate = make(1, 1, 60.0 if how == "cancelled" else 0.01)
        crowd = Crowd(gate)
        first = crowd.come("a")
        await crowd.settle()
        second = crowd.come("b")
        await crowd.settle()
        if how == "cancelled":
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        else:
            with pytest.raises(CapacityError, match="full") as caught:
                await second
            assert caught.value.retry_after_s
        assert gate.waiting() == 0
        gate.patience_s = 60.0
        third = crowd.come("c")
        await crowd.settle()
        await crowd.let_go("a0")
        assert crowd.inside == ["c0"]
        await crowd.all_go()
        await asyncio.gather(first, third)
        assert gate._free == 1

    asyncio.run(main())


def test_a_turn_that_comes_in_the_moment_of_giving_up_goes_to_the_next() -> None:
    async def main() -> None:
        crowd = Crowd(make(1, 1))
        tasks = [crowd.come(user) for user in "abc"]
        await crowd.settle()
        crowd._free["a0"].set()
        await asyncio.sleep(0)  # a leaves and hands its place to b, which has not run yet
        tasks[1].cancel()
        await crowd.settle()
        assert crowd.inside == ["c0"]
        await crowd.all_go()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
        assert crowd.gate._free == 1

    asyncio.run(main())
