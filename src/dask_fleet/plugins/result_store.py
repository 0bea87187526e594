"""The result store port: where the bytes of large results live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path


class ResultStore(ABC):
    """Keeps bytes by their digest. A location appears only when all its bytes are there and durable (atomic)."""

    @abstractmethod
    async def open(self) -> None:
        """Make ready; removes what an interrupted write left."""

    @abstractmethod
    async def close(self) -> None:
        """Let go. Twice is harmless."""

    @abstractmethod
    async def adopt(self, spool: Path, *, digest: str, size: int) -> str:
        """Take over a spooled file after checking its size and SHA-256; return its location.

        Repeating it after a crash is harmless: if the location is there already, the spool file is removed and the location
        returned, also when the spool file is gone.

        Raises
        ------
        ResultCorrupt
            If size or digest differ, or neither spool file nor location is there; the spool file is removed.
        OSError
            If the store is full; the spool file stays.
        """

    @abstractmethod
    async def size(self, location: str) -> int | None:
        """Return the number of bytes at `location`, or ``None`` if there is nothing."""

    @abstractmethod
    def read(self, location: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` up to `stop` in pieces of at most 1 MiB, without blocking the loop.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        """

    @abstractmethod
    async def verify(self, location: str, *, digest: str) -> bool:
        """Read all bytes and say whether their SHA-256 is `digest`."""

    async def stamp(self, location: str) -> str | None:
        """Return a text that changes when the bytes may have been changed by somebody else; ``None`` if there is nothing.

        A store whose objects cannot be changed need not override it.
        """
        size = await self.size(location)
        return None if size is None else str(size)

    async def older(self, *, than_s: float, after: str = "") -> tuple[list[str], str | None]:  # noqa: ARG002
        """Return some locations whose bytes have been here for longer than `than_s`, and where to go on.

        For finding what nobody knows of any more. One call does a bounded amount of work: it may return none with more to
        come. The second value is the next call's `after`; ``None`` at the end. A store that cannot tell returns nothing.
        """
        return [], None

    @abstractmethod
    async def delete(self, location: str) -> None:
        """Remove; nothing there is no error."""
