"""Which stored bytes are being recorded as a result, so that the sweep for orphans does not take them away meanwhile."""

from __future__ import annotations


class BytesInUse:
    """Settles who has a location: an outcome that is being recorded, or the sweep that deletes it. The first one has it."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._swept: set[str] = set()

    def take(self, location: str) -> bool:
        """Take it for a result until `release`; ``False`` if its bytes are being deleted."""
        if location in self._swept:
            return False
        self._taken.add(location)
        return True

    def release(self, location: str) -> None:
        """The ledger knows of it now, or has refused it."""
        self._taken.discard(location)

    def sweep(self, location: str) -> bool:
        """Take it for good, to delete it; ``False`` if a result of it is being recorded.

        It is not given back: names of spool files are used once, so nothing else will ever be stored there.
        """
        if location in self._taken:
            return False
        self._swept.add(location)
        return True
