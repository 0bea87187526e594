"""How much work an agent is given ahead of its free slots, so that short jobs do not wait for the wire. Pure.

With one attempt a slot, a slot stands idle for a whole round trip (outcome, two commits, start) between two jobs: two
slots then do 1,300 trivial calls a second, however fast they are. A few attempts claimed ahead hide that, as TCP's window
or Celery's prefetch do. Jobs that take longer than the wire must not wait behind others, so the window is computed from
what jobs take, and an agent gives back what it could not begin at once.
"""

from __future__ import annotations

AHEAD_S = 0.02
"""Work to have at hand: more than a round trip with its commit, less than anybody notices."""
LONG_S = 2 * AHEAD_S
"""An attempt that takes longer than this is none of the short jobs that the window was made from."""
MOST_AHEAD = 64
_WEIGHT = 0.1
"""Of the newest observation in the moving average."""


Endpoint = tuple[str, str]
"""Service and endpoint."""


class Window:
    """Estimates what a job takes on one agent, from how long attempts are under way and how many were at once."""

    __slots__ = ("_by_endpoint", "_service_s", "ahead")

    def __init__(self) -> None:
        self._service_s: float | None = None
        self._by_endpoint: dict[Endpoint, float] = {}
        self.ahead = 0
        """Attempts that may be given to the agent beyond its slots."""

    def ended(self, endpoint: Endpoint, *, sojourn_s: float, held: int, slots: int) -> None:
        """Note that an attempt has ended after `sojourn_s`, when `held` were under way on `slots`.

        By Little's law `held` attempts that each stay `sojourn_s` pass at ``held / sojourn_s`` a second; spread over the
        slots in use that is the time one takes.
        """
        busy = min(max(held, 1), max(slots, 1))
        service_s = sojourn_s * busy / max(held, 1)
        self._service_s = _moved(self._service_s, service_s)
        self._by_endpoint[endpoint] = _moved(self._by_endpoint.get(endpoint), service_s)
        self.ahead = min(MOST_AHEAD, int(AHEAD_S * max(slots, 1) / max(self._service_s, 1e-6)))

    def is_short(self, endpoint: Endpoint) -> bool:
        """Whether jobs of that endpoint are known to be short: nothing waits behind one of which nothing is known."""
        return self._by_endpoint.get(endpoint, AHEAD_S) < AHEAD_S

    def given_back(self) -> None:
        """The agent could not begin an attempt at once: long jobs hold its slots. Begin anew when one ends."""
        self._service_s = None
        self._by_endpoint.clear()
        self.ahead = 0


def _moved(average: float | None, observed: float) -> float:
    return observed if average is None else average + _WEIGHT * (observed - average)
