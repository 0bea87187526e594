"""How much a process may write past Python: a store that refills slowly; who has emptied it is not heard for a while."""

from __future__ import annotations

STORE_BYTES = 1 << 20
"""At once."""
REFILL_BYTES_S = 16 << 10
"""For ever: a process that never stops fills less than 60 MiB an hour, and that is rotated away."""
DEAF_S = 10.0
"""By then so much has come together that what is kept again is worth reading, and no line here and there."""


class Allowance:
    """What is left to one process. Whoever asks it to `take` calls `hear_again` `DEAF_S` after it has become `deaf`."""

    def __init__(self) -> None:
        self.deaf = False
        """Whether all is dropped."""
        self._left = float(STORE_BYTES)
        self._at: float | None = None
        self._dropped = 0

    def take(self, size: int, now: float) -> int:
        """Return how many of the next `size` bytes are kept; the rest counts as dropped."""
        if self.deaf:
            self._dropped += size
            return 0
        if self._at is not None:
            self._left = min(STORE_BYTES, self._left + (now - self._at) * REFILL_BYTES_S)
        self._at = now
        if size <= self._left:
            self._left -= size
            return size
        kept = int(self._left)
        self._left = 0.0
        self.deaf = True
        self._dropped += size - kept
        return kept

    def hear_again(self) -> int:
        """Return how many bytes were dropped meanwhile."""
        self.deaf = False
        found, self._dropped = self._dropped, 0
        return found
