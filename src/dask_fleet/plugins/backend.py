"""The backend port: how agents are launched on a cluster manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum


class Health(StrEnum):
    """What a backend knows of an agent it launched. ``UNKNOWN`` never leads to a kill."""

    STARTING = "starting"
    RUNNING = "running"
    GONE = "gone"
    UNKNOWN = "unknown"


class Backend(ABC):
    """Launches and ends agents; agents then dial home by themselves."""

    @abstractmethod
    async def start(self) -> None:
        """Launch the agent, unless one launched earlier still lives (then that one is adopted). Repeating it is harmless."""

    @abstractmethod
    async def health(self) -> Health:
        """Return what is known now; never raises for a manager that does not answer (``UNKNOWN``)."""

    @abstractmethod
    async def stop(self, *, timeout_s: float) -> None:
        """Ask the agent to end and, after `timeout_s`, kill it. Nothing of it is left when this returns."""
