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

    async def dismiss(self, pid: int) -> bool:
        """End the agent whose process is `pid`, if it is the one that this backend looks after.

        Called when the server has refused an agent, which is of another version than the server and may dial for long. What
        it runs is lost with it. `pid` is what the agent said of itself: a backend that cannot make sure that the process is
        its agent leaves it alone.

        Returns
        -------
        bool
            Whether it was; by default it never is. Then `start` launches another.

        Raises
        ------
        OSError
            If it cannot be found out now.
        """
        del pid
        return False

    @abstractmethod
    async def stop(self, *, timeout_s: float) -> None:
        """Ask the agent to end and, after `timeout_s`, kill it. Nothing of it is left when this returns."""
