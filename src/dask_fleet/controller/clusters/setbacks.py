"""Workers of one cluster that ended before they had joined: when the next may be tried, and whether any ever will join."""

from __future__ import annotations

import math

MOST_ROUNDS = 6
"""After so many rounds in which workers could not start for reasons of their own, none having joined: none ever will."""
_FIRST_S, _LONGEST_S = 0.2, 30.0


class Setbacks:
    """Counts them in rounds: whatever was granted before a setback was counted belongs to that one's round, for a host that
    is lost, or a module that is missing, ends many workers at once and is one thing that went wrong.
    """

    __slots__ = ("_counted_at", "_joined_epoch", "not_before", "own_rounds", "rounds", "why")

    def __init__(self) -> None:
        self.rounds = 0
        """In a row, for whatever reason: they set the back-off."""
        self.own_rounds = 0
        """Those of them in which a worker could not start for a reason of its own, which the next one would have too."""
        self.why = ""
        """What the last one died of; empty if there was none since a worker joined."""
        self.not_before = 0.0
        """No new worker before then (monotonic clock)."""
        self._counted_at = -math.inf
        self._joined_epoch = 0

    def joined(self, epoch: int) -> None:
        """A worker has joined the scheduler of that epoch: it may have data from now on, and others can join, too."""
        self.rounds = self.own_rounds = 0
        self.why = ""
        self._joined_epoch = max(self._joined_epoch, epoch)

    def add(self, why: str, *, own: bool, granted_at: float, now: float, jitter: float) -> float | None:
        """Take one setback; returns for how long nothing is to be tried, ``None`` if its round was counted before.

        Parameters
        ----------
        own
            Whether the reason was the worker's own.
        granted_at
            When its slots were lent.
        jitter
            Between 0 and 1, drawn at random: clusters that lost workers together do not come back together.
        """
        if own or not self.own_rounds:  # what is known of the workers themselves says more than what befell them
            self.why = why
        if granted_at <= self._counted_at:
            return None
        self._counted_at = now
        self.rounds += 1
        self.own_rounds += own
        delay_s = min(_FIRST_S * 2.0 ** min(self.rounds - 1, 30), _LONGEST_S) * (0.5 + jitter / 2)
        self.not_before = now + delay_s
        return delay_s

    def are_hopeless(self, epoch: int) -> bool:
        """Whether a cluster may be ended for them: never one whose present scheduler has had a worker, and may have data."""
        return self.own_rounds >= MOST_ROUNDS and self._joined_epoch < epoch
