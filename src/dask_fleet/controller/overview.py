"""What an operator sees of the whole: whether the server is ready, what it runs, which agents there are. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_fleet.controller.agents import AgentHandle, Agents
from dask_fleet.controller.dispatcher import Dispatcher
from dask_fleet.controller.fair_queue import Lane
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger


class Overview:
    """Looks at the controller's books."""

    def __init__(
        self, *, ledger: Ledger, agents: Agents, dispatcher: Dispatcher, clock: Clock, versions: Mapping[str, str]
    ) -> None:
        self._ledger = ledger
        self._agents = agents
        self._dispatcher = dispatcher
        self._clock = clock
        self._versions = versions

    @property
    def running(self) -> int:
        """Runs with an attempt under way."""
        return sum(len(handle.held) for handle in self._agents)

    def not_ready_because(self, *, needs_agent: bool) -> str | None:
        """Say why requests are not accepted or, if asked, why no agent can run every service; ``None`` if all is well."""
        if self._dispatcher.paused:
            return "the server is shutting down"
        refusing = self._ledger.refusing
        if refusing is not None:
            return refusing
        if needs_agent:
            lanes = [Lane(*item) for item in self._versions.items()]
            if not any(
                handle.connected and handle.slots > 0 and all(handle.can_run(lane) for lane in lanes)
                for handle in self._agents
            ):
                return "no agent has loaded every service yet"
        return None

    def status(self, *, tenant: str | None, stale_outcomes: int) -> dict[str, Any]:
        """Return what ``GET /v1/status`` shows; of users only those of `tenant`, unless it is ``None``."""
        running = self.running
        return {
            "queued": len(self._dispatcher.by_seq) - running,
            "running": running,
            "draining": self._dispatcher.paused,
            "stale_outcomes": stale_outcomes,
            "paused": self._paused(tenant),
            "agents": [
                _agent(handle, self._dispatcher.others.spare_slots(handle.agent_id)) for handle in self._agents
            ],
        }

    def _paused(self, tenant: str | None) -> list[dict[str, Any]]:
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        return [
            {"user": user, "until_us": now_us + int((pause.until - now) * 1e6), "why": pause.why}
            for (whose, user), pause in self._dispatcher.breaker.pauses.items()
            if tenant in {None, whose}
        ]


def _agent(handle: AgentHandle, spare: int) -> dict[str, Any]:
    return {
        "agent": handle.agent_id,
        "name": handle.name,
        "host": handle.host,
        "pool": handle.pool,
        "connected": handle.connected,
        "slots": handle.slots,
        "free": handle.free + spare,  # whoever wants these gets them
        "spare": spare,
        "held": len(handle.held),
        "versions": handle.versions,
        "problems": handle.problems,
    }
