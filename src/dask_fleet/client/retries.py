"""When a request is sent again, and how long to wait before it: decisions only, no clock.

Repeating is safe: the same request names the same job, and requests of endpoints that are not pure carry an
``Idempotency-Key``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a client is."""

    patience_s: float = 30.0
    """Seconds a request is tried again for. Long enough for a server's restart; after that a person should know."""
    first_s: float = 0.1
    """Longest first wait; it doubles from there."""
    cap_s: float = 5.0
    """Longest wait of our own making; ``Retry-After`` may ask for more."""

    def delay(self, attempt: int, *, elapsed_s: float, retry_after_s: float | None, jitter: float) -> float | None:
        """Return the seconds to wait before the next try, or ``None`` to give up.

        Parameters
        ----------
        attempt
            Tries made so far, at least 1.
        elapsed_s
            Seconds since the first.
        retry_after_s
            What the server asked for.
        jitter
            A random number in [0, 1): many clients refused together must not come back together.
        """
        backoff = min(self.cap_s, self.first_s * 2.0 ** min(attempt - 1, 30)) * (0.5 + jitter / 2)
        wait = backoff if retry_after_s is None else retry_after_s + jitter * self.first_s
        return wait if elapsed_s + wait <= self.patience_s else None
