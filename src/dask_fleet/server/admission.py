"""How many connections there may be: of one address, and in all, with some places that only agents are given."""

from __future__ import annotations

import resource
from typing import Protocol

MAX_CONNECTIONS = 10_000
RESERVED = 64
"""Places beyond the limits, for agents: who takes one must show at once that it is an agent, or is sent away."""
_OTHER_DESCRIPTORS = 256
"""For the ledger, the log, pipes, and whatever else is open beside connections."""


class OnProbation(Protocol):
    """A connection that has a reserved place for as long as it takes to say what it is."""

    def turn_away(self) -> None:
        """End it: its place is needed."""


class Admission:
    """Counts connections.

    Whoever comes beyond a limit is let in on probation, since only the head of its first request tells whether it is an
    agent. There are `RESERVED` such places; the next one takes that of the one that has been silent for longest.
    """

    def __init__(self, *, max_connections: int, max_per_peer: int) -> None:
        self._max_connections = max_connections
        self._max_per_peer = max_per_peer
        self._peers: dict[str, int] = {}
        self._probation: dict[OnProbation, str] = {}
        self.total = 0
        self.entered = 0
        """Connections, ever."""
        self.refused = {"peer": 0, "server": 0}
        """Connections sent away, ever, by the limit they met: that of one address, or that of all."""

    def enter(self, connection: OnProbation, peer: str) -> bool:
        """Count a new connection; return whether it is within the limits (or else on probation)."""
        self.entered += 1
        self.total += 1
        self._peers[peer] = self._peers.get(peer, 0) + 1
        if self._within(peer):
            return True
        if len(self._probation) >= RESERVED:
            oldest = next(iter(self._probation))
            self.refused[self._probation.pop(oldest)] += 1
            oldest.turn_away()
        self._probation[connection] = self._limit_met()
        return False

    def promote(self, connection: OnProbation, peer: str, *, agent: bool) -> bool:
        """End a connection's probation, its first head being there; return whether it may stay."""
        self._probation.pop(connection, None)
        if agent or self._within(peer):
            return True
        self.refused[self._limit_met()] += 1
        return False

    def leave(self, connection: OnProbation | None, peer: str, *, returns: bool = False) -> None:
        """A connection is gone; or `returns` at once as something else, and is one connection still."""
        self.entered -= returns
        if connection is not None:
            self._probation.pop(connection, None)
        self.total -= 1
        left = self._peers.get(peer, 1) - 1
        if left:
            self._peers[peer] = left
        else:
            self._peers.pop(peer, None)

    def _limit_met(self) -> str:
        return "server" if self.total > self._max_connections else "peer"

    def _within(self, peer: str) -> bool:
        return self.total <= self._max_connections and self._peers[peer] <= self._max_per_peer


def room_for_connections() -> int:
    """Raise this process's limit of open files as far as it may, and return how many connections that allows.

    An answer may need a file beside its socket, so there are two descriptors to each.
    """
    wanted = 2 * (MAX_CONNECTIONS + RESERVED) + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, (soft - _OTHER_DESCRIPTORS) // 2 - RESERVED))
