"""An agent that vanishes, the successor that takes its place, and the first one coming back with what it still holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from dask_fleet.testing.fake_agent import FakeAgent
from dask_fleet.testing.served import ServedFleet

T = TypeVar("T")


class Latecomers:
    """Agents of one name, of which the server believes the newest: that the others are dead is known at once."""

    def __init__(self, fleet: ServedFleet, slots: int) -> None:
        self._url, self._slots = fleet.url, slots
        self._token = (fleet.data_dir / "agent.token").read_text("ascii").strip()
        self._ledger_id = ""

    def _agent(self, which: str, **options: Any) -> FakeAgent:
        return FakeAgent(self._url, self._token, agent=f"local-{which}", slots=self._slots, **options)

    @asynccontextmanager
    async def first(self) -> AsyncIterator[FakeAgent]:
        """Connect the one that will vanish, ready to work."""
        async with self._agent("first") as agent:
            assert agent.welcome is not None
            self._ledger_id = agent.welcome.ledger_id
            await agent.ready()
            yield agent

    def second(self) -> FakeAgent:
        """Return its successor."""
        return self._agent("second")

    def zombie(self, **held: Any) -> FakeAgent:
        """Return the first one again, with what it says it still holds."""
        return self._agent("first", ledger_id=self._ledger_id, **held)


def thirds(ordered: list[T]) -> tuple[list[T], list[T], list[T]]:
    """Return what is late at the first, the second and the last of three moments."""
    third = len(ordered) // 3
    return ordered[:third], ordered[third : 2 * third], ordered[2 * third :]
