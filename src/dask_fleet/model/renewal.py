"""When a certificate is renewed: decided here, done by whoever shows it."""

from __future__ import annotations

import datetime as dt

SOONEST_S = 0.5
"""Between two requests at least, whatever the clocks of two hosts say."""
LONGEST_S = 60.0
"""Between two requests that bring nothing, at most: a fleet that is back after a night is asked within a minute."""
_OF_USE_S = 1.0
"""A certificate that ends sooner is worth no more than none: the clocks differ, or its authority ends."""


class Renewal:
    """Half-way through each certificate; later and later while that brings nothing. All times are seconds since 1970."""

    def __init__(self) -> None:
        self.due_s = 0.0
        """When to ask next."""
        self.expires_s = 0.0
        """Of the certificate that came last."""
        self._authority = ""
        self._delay_s = SOONEST_S

    def asked(self, now_s: float) -> None:
        """Note that another one is asked for; whether it comes or not, the next time is a while from now."""
        self.due_s = now_s + self._delay_s
        self._delay_s = min(LONGEST_S, 2 * self._delay_s)

    def took(self, expires_s: float, authority: str, now_s: float) -> bool:
        """Note a certificate; whether it holds, and longer than the last one did. If not, asking goes on as if none came."""
        is_of_use = expires_s - now_s >= _OF_USE_S and (expires_s > self.expires_s or authority != self._authority)
        self.expires_s, self._authority = expires_s, authority
        if is_of_use:
            self._delay_s = SOONEST_S
            self.due_s = now_s + max(SOONEST_S, (expires_s - now_s) / 2)
        return is_of_use

    @property
    def complaint(self) -> str:
        """What to tell when a certificate is of no use."""
        ends = dt.datetime.fromtimestamp(self.expires_s, dt.UTC)
        return (
            f"its certificate ends at {ends:%Y-%m-%d %H:%M:%S} UTC and the new one no later: new connections fail then. "
            "Compare the clocks of this host and of the scheduler's; if they agree, the authority of the cluster ends: take "
            "another cluster"
        )
