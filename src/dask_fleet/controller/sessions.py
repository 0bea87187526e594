"""Agents come, reconnect and go: who they are, what they still hold, and what is lost when they do not come back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dask_fleet.controller.agents import AgentHandle, Agents, AttemptKey, HeldAttempt, Send, agent_home
from dask_fleet.controller.changes import Changes
from dask_fleet.controller.clusters.manager import Clusters
from dask_fleet.controller.dispatcher import Dispatcher, Spawn, start_frame
from dask_fleet.controller.leases import LeaseKeeper
from dask_fleet.controller.logs import JobLogs
from dask_fleet.controller.outcomes import Outcomes
from dask_fleet.model.errors import ProtocolError
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.leases import LEASE_S
from dask_fleet.model.states import RunState
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.protocol.cluster_frames import NeedCluster
from dask_fleet.protocol.frames import (
    HEARTBEAT_S,
    PROTOCOL_VERSION,
    AgentFrame,
    Cancel,
    Heartbeat,
    Hello,
    Introduction,
    LogChunk,
    LogGrown,
    Outcome,
    Progress,
    Ready,
    Welcome,
    introduction,
)

log = logging.getLogger(__name__)


class OtherProtocol(ProtocolError):
    """The agent is of a version that speaks another protocol."""

    def __init__(self, protocol: int) -> None:
        super().__init__(
            f"the agent speaks protocol {protocol}, this server {PROTOCOL_VERSION}:"
            " install the same version of dask-fleet on both"
        )


class Sessions:
    """The server's side of the protocol with agents."""

    def __init__(
        self,
        *,
        agents: Agents,
        dispatcher: Dispatcher,
        outcomes: Outcomes,
        changes: Changes,
        logs: JobLogs,
        clock: Clock,
        spawn: Spawn,
        ledger: Ledger,
        ledger_id: Callable[[], str],
        targets: list[str],
        versions: dict[str, str],
        clusters: Clusters,
    ) -> None:
        self._agents = agents
        self._dispatcher = dispatcher
        self._outcomes = outcomes
        self._changes = changes
        self._logs = logs
        self._clock = clock
        self._spawn = spawn
        self.leases = LeaseKeeper(ledger, clock, lapsed=self._lease_lapsed)
        self._ledger_id = ledger_id
        self._targets = targets
        self._versions = versions
        self._clusters = clusters
        self._losing: set[AttemptKey] = set()
        """Attempts whose loss is being written: an agent that comes back meanwhile must not go on with them."""
        self.on_refused: Callable[[Introduction], None] = _ignore
        """Called with an agent that is not let in for what it speaks: it may dial for long, and be in the way of another."""
        dispatcher.on_claimed_for_lost = self._lose_late_claims

    # ------------------------------------------------------------------ coming

    def attach(self, hello: Hello, send: Send) -> AgentHandle:
        """Greet an agent: adopt what it holds, send again what never reached it, end what it should not run.

        Raises
        ------
        ProtocolError
            If it speaks another version of the protocol.
        """
        if hello.protocol != PROTOCOL_VERSION:
            raise OtherProtocol(hello.protocol)
        home = hello.home or hello.name
        if agent_home(hello.agent) != home:
            raise ProtocolError(f"the agent's id {hello.agent!r} does not begin with its home {home!r}")
        handle = self._agents.ensure(hello.agent, hello.name)
        handle.name = hello.name  # one taken up from the ledger has only been known by its id
        handle.slots = hello.slots
        handle.pid = hello.pid
        handle.nworkers, handle.nthreads = max(hello.nworkers, 1), max(hello.nthreads, 1)
        handle.host, handle.pool = hello.host, hello.pool
        handle.memory_bytes, handle.resources = hello.memory_limit * handle.nworkers, dict(hello.resources)
        handle.versions = {}  # it will say so when its workers are ready
        handle.connect(send, now_us=self._clock.now_us())
        self.leases.expect(hello.agent, name=hello.name, pool=hello.pool)
        self.leases.heard(hello.agent)
        log.info("agent connected", extra={"action": "agent_connected", "agent": hello.agent, "slots": hello.slots})
        ledger_id = self._ledger_id()
        handle.send(Welcome(ledger_id, self._targets, self._versions, LEASE_S))
        says = {(ref.seq, ref.attempt) for ref in hello.held} if hello.ledger_id in {"", ledger_id} else set()
        for ref in hello.held if says else ():
            job = self._dispatcher.by_seq.get(ref.seq)
            key = (ref.seq, ref.attempt)
            if job is None or job.attempt != ref.attempt or job.state is not RunState.RUNNING or key in self._losing:
                handle.send(Cancel(ref.seq, ref.run, ref.attempt, 0.0))  # a zombie: its outcome will be refused
            elif key not in handle.held and agent_home(job.agent or "") == handle.home:
                # Its own, or its predecessor's: what that one had spooled, this one delivers, or it is lost with this one.
                handle.hold(
                    HeldAttempt(
                        seq=ref.seq, run=ref.run, attempt=ref.attempt, alone=job.suspect,
                        slotless=key in self._clusters.book.by_attempt,
                    )
                )  # fmt: skip
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
            if other is not handle and not other.connected and (other.home == handle.home or other.ended):
                self._spawn(self.leases.release(other.agent_id), f"release-{other.agent_id}")
                self._lose_all(other, "its agent died", spared=says)
        self._clusters.hearing.attached(handle, hello, is_ours=hello.ledger_id in {"", ledger_id})
        return handle

    def adopt_from_ledger(self, job: JobRecord) -> None:
        """At start: a running attempt of an agent that will reconnect, or be found lost."""
        assert job.agent is not None
        home = agent_home(job.agent)
        handle = self._agents.ensure(job.agent, home)
        handle.hold(HeldAttempt(seq=job.seq, run=job.run, attempt=job.attempt, alone=job.suspect))
        self._dispatcher.track(job)

    async def take_up(self) -> None:
        """At start, after all running attempts were adopted: whom they are expected from, and for how long."""
        ended = await self.leases.take_up()
        for key in self._clusters.book.by_attempt:
            for handle in self._agents:
                handle.give_slot_back(key)
        for handle in self._agents:
            if handle.agent_id in ended:
                # The server died between the end of the lease and the loss of what the agent held.
                self._lose_all(handle, "its agent's lease had lapsed", spared=set())
            else:
                self.leases.expect(handle.agent_id, name=handle.name, pool="default")
        for agent in self.leases.awaited():
            self._clusters.hearing.await_return(agent)

    # ------------------------------------------------------------------ talking

    def receive(self, handle: AgentHandle, frames: list[AgentFrame]) -> None:
        """Take frames of an agent, in order; none of them may block the loop."""
        self.leases.heard(handle.agent_id)
        for frame in frames:
            match frame:
                case Outcome():
                    if frame.log_bytes:
                        self._logs.expect(frame.seq, frame.attempt, frame.log_bytes)
                    if self._clusters.book.by_attempt:
                        self._clusters.attempt_ended(frame.seq, frame.attempt)
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
                    self._logs.receive(handle, frame)
                case Heartbeat():
                    if frame.held is not None:
                        self._send_missing(handle, {(ref.seq, ref.attempt) for ref in frame.held})
                case NeedCluster():
                    if handle.give_slot_back((frame.seq, frame.attempt)):
                        self._dispatcher.pump()
                    self._spawn(self._clusters.need(handle, frame), f"need-{frame.seq}-{frame.attempt}")
                case Hello():
                    raise ProtocolError("a second Hello on one connection")
                case _:
                    self._clusters.hearing.receive(handle, frame)

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

    def refused(self, message: bytes) -> None:
        """Tell of an agent that was refused, from the message with which it came."""
        who = introduction(message)
        if who is not None and not any(other.connected and other.pid == who.pid for other in self._agents):
            self.on_refused(who)

    def ended(self, agent_id: str) -> None:
        """An agent's process has been ended: the next agent that comes need not be of its home for it to be lost."""
        handle = self._agents.get(agent_id)
        if handle is not None and not handle.connected:
            handle.ended = True

    def detach(self, handle: AgentHandle, send: Send) -> None:
        """The websocket is gone. The agent goes on running what it holds, until its lease lapses or it comes back."""
        if not handle.is_reached_by(send):
            return  # it has reconnected meanwhile, or was given up
        handle.disconnect()
        log.warning(
            "agent disconnected", extra={"action": "agent_disconnected", "agent": handle.agent_id, "held": len(handle.held)}
        )
        if any(other.connected and other.home == handle.home for other in self._agents):
            # Its successor was here before its own end was seen: it is dead, nobody need wait for it.
            self._spawn(self.leases.release(handle.agent_id), f"release-{handle.agent_id}")
            self._lose_all(handle, "its agent died", spared=set())

    def _lease_lapsed(self, agent_id: str) -> None:
        self._clusters.hearing.gave_up(agent_id)
        handle = self._agents.get(agent_id)
        if handle is not None:
            # If it was only stopped, it finds its connection closed, connects again, and is told to end what it holds.
            handle.disconnect()
            self._lose_all(handle, f"its agent was not heard of for {LEASE_S:.0f} s", spared=set())

    def _lose_all(self, handle: AgentHandle, message: str, *, spared: set[AttemptKey]) -> None:
        log.warning("agent lost", extra={"action": "agent_lost", "agent": handle.agent_id, "held": len(handle.held)})
        handle.lost = True
        self._agents.forget(handle)
        self._clusters.hearing.lost(handle.agent_id, message)
        for key, held in list(handle.held.items()):
            if key in spared:
                handle.drop(key)  # its successor's now
            else:
                self._lose(handle, held, message)

    def _lose_late_claims(self, handle: AgentHandle) -> None:
        """A claim for an agent was on its way into the ledger when the agent was given up: what came of it is lost too."""
        for held in list(handle.held.values()):
            self._lose(handle, held, "its agent was lost while the attempt was being claimed")

    def _lose(self, handle: AgentHandle, held: HeldAttempt, message: str) -> None:
        key = (held.seq, held.attempt)
        if key not in self._losing:
            self._losing.add(key)
            self._spawn(self._write_loss(handle, held, message), f"lose-{held.seq}-{held.attempt}")

    async def _write_loss(self, handle: AgentHandle, held: HeldAttempt, message: str) -> None:
        try:
            await self._outcomes.lose(handle, held.seq, held.run, held.attempt, message)
        finally:
            self._losing.discard((held.seq, held.attempt))


def _ignore(_: Introduction) -> None:
    """Nobody looks after agents."""
