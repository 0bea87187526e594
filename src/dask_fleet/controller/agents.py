"""The agents the server knows: what they can run, what they hold, and how to reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from dask_fleet.controller.fair_queue import Lane
from dask_fleet.controller.pipeline import LONG_S, Endpoint, Window
from dask_fleet.model.placement import MAX_ATTEMPTS
from dask_fleet.plugins.clock import Clock
from dask_fleet.protocol.frames import Progress, ServerFrame

Send = Callable[[ServerFrame], None]
AttemptKey = tuple[int, int]
"""``(seq, attempt)``."""


class HeldAttempt(msgspec.Struct, gc=False):
    """An attempt an agent holds: it runs there, or its outcome is on the way."""

    seq: int
    run: int
    attempt: int
    since: float = 0.0
    """When it was given out, by the monotonic clock; 0 if another server did."""
    endpoint: Endpoint = ("", "")
    short: bool = False
    """Whether its endpoint was known to take little then."""
    alone: bool = False
    """A suspect, which has a worker process for itself."""
    alongside: int = 1
    """How many the agent held then, this one included."""
    slotless: bool = False
    """It has given its slot back for good: it waits for its own cluster."""
    progress: Progress | None = None


def agent_home(agent_id: str) -> str:
    """Return the part of an agent's id that names its data folder (``local-3q5w…`` → ``local``)."""
    return agent_id.rpartition("-")[0] or agent_id


class AgentHandle:
    """One agent process, connected or not.

    Slots are counted here by what the *server* gave out (held and reserved), so that the count is right without asking.
    """

    def __init__(self, agent_id: str, name: str, clock: Clock) -> None:
        self._clock = clock
        self.agent_id = agent_id
        self.name = name
        self.home = agent_home(agent_id)
        """Names its data folder: agents with one home never live at the same time."""
        self.host = ""
        self.pool = "default"
        self.slots = 0
        self.nworkers = 1
        """Worker processes: as many suspects can run at once."""
        self.nthreads = 1
        """Slots of each."""
        self.memory_bytes = 0
        """Of all its worker processes together; 0 if they have no limit."""
        self.resources: dict[str, float] = {}
        """Named resources it declares."""
        self.versions: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self._held: dict[AttemptKey, HeldAttempt] = {}
        self._not_short = 0
        self._alone = 0
        self._slotless = 0
        self.reserved = 0
        self.reserved_alone = 0
        """Of the reserved slots, those for suspects."""
        self.leased = 0
        """Slots lent to clusters."""
        self.promised = 0
        """Slots kept from jobs for the first worker of a cluster that waits longer than they do."""
        self.lost = False
        """It is given up: whatever it may still hold is run again elsewhere."""
        self.ended = False
        """Its process is known to have ended."""
        self.window = Window()
        self.pid = 0
        self.connected_since_us: int | None = None
        self._send: Send | None = None

    @property
    def connected(self) -> bool:
        """Whether frames reach it now."""
        return self._send is not None

    @property
    def held(self) -> Mapping[AttemptKey, HeldAttempt]:
        """What it holds, oldest first."""
        return self._held

    def hold(self, attempt: HeldAttempt) -> None:
        """Note that it holds an attempt."""
        self.drop((attempt.seq, attempt.attempt))
        self._held[attempt.seq, attempt.attempt] = attempt
        self._not_short += not (attempt.short or attempt.slotless)
        self._alone += attempt.alone
        self._slotless += attempt.slotless

    def drop(self, key: AttemptKey) -> HeldAttempt | None:
        """Note that it holds an attempt no more; return what was known of it."""
        attempt = self._held.pop(key, None)
        if attempt is not None:
            self._not_short -= not (attempt.short or attempt.slotless)
            self._alone -= attempt.alone
            self._slotless -= attempt.slotless
        return attempt

    def give_slot_back(self, key: AttemptKey) -> bool:
        """Note that an attempt waits for a cluster of its own, so that others get its slot; whether that is news."""
        attempt = self._held.get(key)
        if attempt is None or attempt.slotless:
            return False
        self.hold(msgspec.structs.replace(attempt, slotless=True))
        return True

    def reserve(self, *, alone: bool = False) -> None:
        """Set a slot aside for a run that is being claimed."""
        self.reserved += 1
        self.reserved_alone += alone

    def unreserve(self, *, alone: bool = False) -> None:
        """The claim has ended, one way or the other."""
        self.reserved -= 1
        self.reserved_alone -= alone

    @property
    def free(self) -> int:
        """Slots that nothing uses; negative while work is given ahead."""
        if self._send is None:
            return 0
        free = self.slots - len(self._held) - self.reserved - self.leased - self.promised + self._slotless
        if self._alone or self.reserved_alone:
            free -= (self._alone + self.reserved_alone) * (self.nthreads - 1)  # a suspect takes its whole process
        return free

    @property
    def takes_suspect(self) -> bool:
        """Whether a suspect may be given to it now: a worker process for each of them, and nothing ahead."""
        return self._alone + self.reserved_alone < self.nworkers and self.free > 0 and not self._is_full

    @property
    def _is_full(self) -> bool:
        """Whether it has as many attempts as it may, though those that wait for clusters of their own take no slots."""
        if not self._slotless:
            return False
        return len(self._held) + self.reserved >= max(MAX_ATTEMPTS, self.nthreads) * self.nworkers

    @property
    def takes_more(self) -> bool:
        """Whether a run may be given to it now: to a free slot, or ahead."""
        if self._is_full:
            return False
        free = self.free
        if free > 0:
            return True
        if self._send is None or not self.window.ahead or self.promised:
            return False  # what is given ahead would take the slots that are promised
        slots = self.slots - self.leased
        # Nothing is given ahead behind an attempt that already takes longer than what the window was made from.
        before = self._clock.monotonic() - LONG_S
        long = self._not_short
        for held in self._held.values():  # oldest first
            if held.since > before:
                break
            long += held.short and not held.slotless
        return long < slots and free + self.window.ahead * (slots - long) // slots > 0

    def can_run(self, lane: Lane) -> bool:
        """Whether its workers have loaded that service at that version."""
        return self.versions.get(lane.service) == lane.version

    def connect(self, send: Send, *, now_us: int) -> None:
        """A websocket of it is there."""
        self._send = send
        self.connected_since_us = now_us

    def is_reached_by(self, send: Send) -> bool:
        """Whether `send` is the connection now in use."""
        return self._send is send

    def disconnect(self) -> None:
        """Its websocket is gone; what it holds it may still be running."""
        self._send = None
        self.connected_since_us = None

    def send(self, frame: ServerFrame) -> bool:
        """Send a frame if connected; what is lost on the way is mended when it reconnects and says what it holds."""
        if self._send is None:
            return False
        self._send(frame)
        return True


class Agents:
    """All handles, and the choice of one for a run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_id: dict[str, AgentHandle] = {}

    def __iter__(self) -> Iterator[AgentHandle]:
        return iter(list(self._by_id.values()))

    def get(self, agent_id: str) -> AgentHandle | None:
        """Return the handle of an agent that is known."""
        return self._by_id.get(agent_id)

    def ensure(self, agent_id: str, name: str) -> AgentHandle:
        """Return the handle of an agent, made if it is new."""
        handle = self._by_id.get(agent_id)
        if handle is None:
            handle = self._by_id[agent_id] = AgentHandle(agent_id, name, self._clock)
        return handle

    def forget(self, handle: AgentHandle) -> None:
        """The agent is gone for good."""
        self._by_id.pop(handle.agent_id, None)

    def choose(self, lane: Lane) -> AgentHandle | None:
        """Return the agent with the most free slots that can run this lane, or ``None`` if none takes more."""
        best: AgentHandle | None = None
        for handle in self._by_id.values():
            takes = handle.takes_suspect if lane.alone else handle.takes_more
            if takes and handle.can_run(lane) and (best is None or handle.free > best.free):
                best = handle
        return best
