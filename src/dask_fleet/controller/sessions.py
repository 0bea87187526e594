"""Agents come, reconnect and go: who they are, what they still hold, and what is lost when they do not come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dask_fleet.controller.agents import AgentHandle, Agents, HeldAttempt, Send, agent_home
from dask_fleet.controller.changes import Changes
from dask_fleet.controller.dispatcher import Dispatcher, Spawn, start_frame
from dask_fleet.controller.outcomes import Outcomes
from dask_fleet.model.errors import ProtocolError
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.protocol.frames import (
    HEARTBEAT_S,
    PROTOCOL_VERSION,
    AgentFrame,
    Cancel,
    Heartbeat,
    Hello,
    LogChunk,
    LogGrown,
    Outcome,
    Progress,
    Ready,
    Welcome,
)

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""Beyond the agent's own orphan time-out: it has surely killed its workers when we run their attempts again."""

_CLAIM_RECHECK_S = 0.1
"""Longer than a commit: after that, a claim that was under way for an agent now dead can be seen."""


class Sessions:
    """The server's side of the protocol with agents."""

    def __init__(
        self,
        *,
        agents: Agents,
        dispatcher: Dispatcher,
        outcomes: Outcomes,
        changes: Changes,
        clock: Clock,
        spawn: Spawn,
        orphan_timeout_s: float,
        ledger_id: Callable[[], str],
        targets: list[str],
        versions: dict[str, str],
    ) -> None:
        self._agents = agents
        self._dispatcher = dispatcher
        self._outcomes = outcomes
        self._changes = changes
        self._clock = clock
        self._spawn = spawn
        self._lost_after_s = orphan_timeout_s + GRACE_S
        self._ledger_id = ledger_id
        self._targets = targets
        self._versions = versions
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    # ------------------------------------------------------------------ coming

    def attach(self, hello: Hello, send: Send) -> AgentHandle:
        """Greet an agent: adopt what it holds, send again what never reached it, end what it should not run.

        Raises
        ------
        ProtocolError
            If it speaks another version of the protocol.
        """
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the agent speaks protocol {hello.protocol}, this server {PROTOCOL_VERSION}:"
                " install the same version of dask-fleet on both"
            )
        home = hello.home or hello.name
        if agent_home(hello.agent) != home:
            raise ProtocolError(f"the agent's id {hello.agent!r} does not begin with its home {home!r}")
        handle = self._agents.ensure(hello.agent, hello.name)
        handle.slots = hello.slots
        handle.pid = hello.pid
        handle.versions = {}  # it will say so when its workers are ready
        self._cancel_deadline(handle)
        handle.connect(send, now_us=self._clock.now_us())
        log.info("agent connected", extra={"action": "agent_connected", "agent": hello.agent, "slots": hello.slots})
        ledger_id = self._ledger_id()
        handle.send(Welcome(ledger_id, self._targets, self._versions))
        says = {(ref.seq, ref.attempt) for ref in hello.held} if hello.ledger_id in {"", ledger_id} else set()
        for ref in hello.held if says else ():
            job = self._dispatcher.by_seq.get(ref.seq)
            if job is None or job.attempt != ref.attempt or job.state is not RunState.RUNNING:
                handle.send(Cancel(ref.seq, ref.run, ref.attempt, 0.0))  # a zombie: its outcome will be refused
            elif (ref.seq, ref.attempt) not in handle.held and agent_home(job.agent or "") == handle.home:
                # Its own, or its predecessor's: what that one had spooled, this one delivers, or it is lost with this one.
                handle.hold(HeldAttempt(seq=ref.seq, run=ref.run, attempt=ref.attempt))
        for key, held in list(handle.held.items()):
            job = self._dispatcher.by_seq.get(held.seq)
            if job is None or job.attempt != held.attempt:
                handle.drop(key)
            elif key not in says:
                handle.send(start_frame(job))  # our frame was lost on the way: the attempt never began
            if job is not None and job.cancel_requested_by is not None:
                handle.send(Cancel(job.seq, job.run, job.attempt))
        for other in self._agents:
            # One agent of a home lives at a time (it locks its folder), so an unconnected one of the same is dead. What it
            # spooled, its successor has listed as held and delivers: those attempts are not lost.
            if other is not handle and other.home == handle.home and not other.connected:
                self._cancel_deadline(other)
                self._lose_all(other, "its agent died", spared=says)
        return handle

    def adopt_from_ledger(self, job: JobRecord) -> None:
        """At start: a running attempt of an agent that will reconnect, or be found lost."""
        assert job.agent is not None
        handle = self._agents.ensure(job.agent, agent_home(job.agent))
        handle.hold(HeldAttempt(seq=job.seq, run=job.run, attempt=job.attempt))
        self._dispatcher.track(job)
        if job.agent not in self._deadlines:
            self._arm_deadline(handle)

    # ------------------------------------------------------------------ talking

    def receive(self, handle: AgentHandle, frames: list[AgentFrame]) -> None:
        """Take frames of an agent, in order; none of them may block the loop."""
        for frame in frames:
            match frame:
                case Outcome():
                    self._spawn(self._outcomes.record(handle, frame), f"outcome-{frame.seq}-{frame.attempt}")
                case Progress():
                    held = handle.held.get((frame.seq, frame.attempt))
                    if held is not None:
                        held.progress = frame
                        self._changes.progressed(frame.seq)
                case Ready():
                    handle.versions, handle.problems, handle.slots = frame.versions, frame.problems, frame.slots
                    for problem in frame.problems.values():
                        log.error(
                            "agent cannot load a service: %s", problem, extra={"action": "load_failed", "agent": handle.name}
                        )
                    self._dispatcher.pump()
                case LogChunk() | LogGrown():
                    pass  # taken by the logs, once there are any
                case Heartbeat():
                    if frame.held is not None:
                        self._send_missing(handle, {(ref.seq, ref.attempt) for ref in frame.held})
                case Hello():
                    raise ProtocolError("a second Hello on one connection")

    def _send_missing(self, handle: AgentHandle, holds: set[tuple[int, int]]) -> None:
        """Send again what the agent should hold and does not: whatever became of the first frame, the run must go on."""
        now = self._clock.monotonic()
        for key, held in handle.held.items():
            job = self._dispatcher.by_seq.get(held.seq)
            if key not in holds and now - held.since > 2 * HEARTBEAT_S and job is not None and job.attempt == held.attempt:
                held.since = now
                log.warning(
                    "attempt sent again: its agent did not have it",
                    extra={"action": "attempt_sent_again", "agent": handle.agent_id, "seq": key[0], "attempt": key[1]},
                )
                handle.send(start_frame(job))

    # ------------------------------------------------------------------ going

    def detach(self, handle: AgentHandle, send: Send) -> None:
        """The websocket is gone. The agent goes on running what it holds for its orphan time-out."""
        if not handle.is_reached_by(send):
            return  # it has reconnected meanwhile
        handle.disconnect()
        log.warning(
            "agent disconnected", extra={"action": "agent_disconnected", "agent": handle.agent_id, "held": len(handle.held)}
        )
        if any(other.connected and other.home == handle.home for other in self._agents):
            # Its successor was here before its own end was seen: it is dead, nobody need wait for it.
            self._lose_all(handle, "its agent died", spared=set())
        else:
            self._arm_deadline(handle)

    def close(self) -> None:
        """Stop all timers."""
        for timer in self._deadlines.values():
            timer.cancel()
        self._deadlines.clear()

    def _arm_deadline(self, handle: AgentHandle) -> None:
        self._cancel_deadline(handle)
        timer = asyncio.get_running_loop().call_later(self._lost_after_s, self._gone, handle)
        self._deadlines[handle.agent_id] = timer

    def _cancel_deadline(self, handle: AgentHandle) -> None:
        timer = self._deadlines.pop(handle.agent_id, None)
        if timer is not None:
            timer.cancel()

    def _gone(self, handle: AgentHandle) -> None:
        self._deadlines.pop(handle.agent_id, None)
        if not handle.connected:
            self._lose_all(handle, f"its agent did not come back within {self._lost_after_s:.0f} s", spared=set())

    def _lose_all(self, handle: AgentHandle, message: str, *, spared: set[tuple[int, int]]) -> None:
        log.warning("agent lost", extra={"action": "agent_lost", "agent": handle.agent_id, "held": len(handle.held)})
        for key, held in list(handle.held.items()):
            if key not in spared:
                self._spawn(
                    self._outcomes.lose(handle, held.seq, held.run, held.attempt, message), f"lose-{held.seq}-{held.attempt}"
                )
            else:
                handle.drop(key)  # its successor's now
        if handle.reserved:
            # A claim for it is on its way into the ledger; what comes of it is lost too, so look again.
            loop = asyncio.get_running_loop()
            self._deadlines[handle.agent_id] = loop.call_later(_CLAIM_RECHECK_S, self._gone, handle)
        else:
            self._agents.forget(handle)
