"""The agent: puts its parts together and runs until told, refused or orphaned. `main` is what comes before."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from importlib import metadata
from typing import Any

from dask_fleet.agent.clusters.held_cluster import SchedulerLimits
from dask_fleet.agent.clusters.host import ClusterHost, HostFrame
from dask_fleet.agent.home import ensure_home
from dask_fleet.agent.launcher import Launcher
from dask_fleet.agent.link import Ending, Link
from dask_fleet.agent.log_file import keep_small
from dask_fleet.agent.log_shipping import LogShipper, leftovers
from dask_fleet.agent.options import AgentOptions
from dask_fleet.agent.outbox import Outbox
from dask_fleet.agent.supervisor import Supervisor
from dask_fleet.agent.uploads import Uploads
from dask_fleet.config.memory import memory_limit_bytes, scheduler_memory_limit_bytes
from dask_fleet.model.ids import random_id
from dask_fleet.protocol.cluster_frames import ClusterAgentFrame, JobCluster
from dask_fleet.protocol.frames import (
    PROTOCOL_VERSION,
    Ack,
    AgentFrame,
    Cancel,
    Heartbeat,
    Hello,
    LogAck,
    LogChunk,
    LogGrown,
    Outcome,
    Progress,
    Ready,
    ServerFrame,
    Shutdown,
    Start,
    Welcome,
)

log = logging.getLogger(__name__)

SIGNAL_DRAIN_S = 5.0
"""What SIGTERM and Ctrl-C give running attempts; the server's `Shutdown` says its own."""
_ACK_S = 2.0
"""How long the last outcomes may take to be acknowledged; what is not goes to disk."""
_UPLOADED_S = 30.0
"""The same where large results have to be uploaded first."""
_PACKAGES = ("dask", "distributed", "numpy", "pandas", "pyarrow", "msgpack", "cloudpickle")


class Agent:
    """The parts of one agent, wired together."""

    def __init__(self, options: AgentOptions, outbox: Outbox) -> None:
        self._options = options
        # In the server's own folder there is no other home that could have this name.
        self._home = options.name if options.shares_data else ensure_home(options.data_dir, options.name)
        self._id = random_id(self._home)
        self._outbox = outbox
        self._uploads = None if options.shares_data else Uploads(options, uploaded=self._send)
        self._shipper: LogShipper | None = None
        if not options.shares_data:
            left = leftovers(options.logs)
            self._shipper = LogShipper(options.logs, send=self._report, left=left, moved=self._has_moved)
        self._launcher = Launcher(
            name=options.name,
            nthreads=options.nthreads,
            data_dir=options.data_dir,
            spool=options.spool,
            logs=options.logs,
        )
        self._memory_limit = memory_limit_bytes(options.memory_limit, options.nworkers)
        self._supervisor = Supervisor(
            launcher=self._launcher,
            nworkers=options.nworkers,
            nthreads=options.nthreads,
            timeout_grace_s=options.timeout_grace_s,
            memory_limit_bytes=self._memory_limit,
            report=self._report,
            deliver=self._deliver,
            discard=outbox.discard_spool,
            discard_left=outbox.discard_spool_of,
            on_member=lambda frame: self._clusters.heard(frame),  # noqa: PLW0108 - they are made below
            on_members_lost=lambda worker, death: self._clusters.process_ended(worker, death),  # noqa: PLW0108
        )
        self._clusters = ClusterHost(
            launcher=self._launcher,
            supervisor=self._supervisor,
            send=self._report,
            host=lambda: options.cluster_host or self._link.local_host or "127.0.0.1",
            data_dir=options.data_dir,
            memory_limit_bytes=self._memory_limit,
            nthreads=options.nthreads,
            slots=options.slots,
            spares=options.spares,
            limits=SchedulerLimits(
                scheduler_memory_limit_bytes(options.scheduler_memory_limit), options.certificate_lifetime_s
            ),
        )
        self._link = Link(
            options,
            hello=self._hello,
            on_welcome=self._on_welcome,
            on_frames=self._on_frames,
            on_lost=self._on_lost,
            heartbeat=self._heartbeat,
        )
        self._told_to_end: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._acknowledged = asyncio.Event()

    async def run(self) -> int:
        """Run until the end; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end_in, SIGNAL_DRAIN_S)
        if self._options.lifetime_s is not None:
            loop.call_later(self._options.lifetime_s, self._retire)
        link = asyncio.create_task(self._link.run(), name="link")
        shipping = None if self._shipper is None else asyncio.create_task(self._shipper.run(), name="log-shipping")
        tidying = None if (log_file := self._options.log_file) is None else asyncio.create_task(
            keep_small(log_file), name="log-file"
        )  # fmt: skip
        parts: list[asyncio.Future[Any]] = [link, self._told_to_end]
        try:
            self._launcher.end_predecessors_orphans()
            await self._clusters.sweep()
            self._supervisor.begin()
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if link.done():
                found = self._link.was_welcomed or self._options.shares_data
                return 0 if found and link.result() is Ending.ORPHANED else 1
            await self._end(self._told_to_end.result(), link)
            return 0
        finally:
            await self._clusters.close("its agent ended")
            await self._supervisor.close()
            if self._uploads is not None:
                await self._uploads.close()
            others = [task for task in (link, shipping, tidying) if task is not None]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.to_thread(self._launcher.close)

    def _end_in(self, drain_s: float | None) -> None:
        """Begin to end, after what runs or at most `drain_s`; asked a second time, the drain is cut short."""
        self._clusters.take_no_more("this agent is ending")
        self._supervisor.take_no_more()
        if not self._told_to_end.done():
            self._told_to_end.set_result(drain_s)
        else:
            self._supervisor.abandon("its agent was shut down", given_back=True)

    def _retire(self) -> None:
        """The lifetime is over: give back what has not begun, and end when what runs has ended."""
        if not self._told_to_end.done():
            log.info("lifetime over", extra={"action": "lifetime_over", "running": len(self._supervisor.held())})
            self._end_in(None)
            self._supervisor.give_back_waiting()

    async def _end(self, drain_s: float | None, link: asyncio.Task[Ending]) -> None:
        log.info("ending", extra={"action": "shutdown", "drain_s": drain_s})
        drain = asyncio.create_task(self._supervisor.drain(drain_s), name="drain")
        await asyncio.wait([drain, link], return_when=asyncio.FIRST_COMPLETED)  # without a server nobody waits for what runs
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
        await self._clusters.close("its agent was told to end")
        await self._supervisor.close()
        try:
            async with asyncio.timeout(_UPLOADED_S if self._uploads is not None and self._uploads.under_way else _ACK_S):
                while (len(self._outbox) or self._ships) and self._link.connected:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        except TimeoutError:
            log.warning("outcomes unacknowledged", extra={"action": "unacknowledged", "outcomes": len(self._outbox)})
        self._link.close("the agent ends")
        await asyncio.wait([link], timeout=0.5)

    # ------------------------------------------------------------------ frames

    def _hello(self) -> Hello:
        return Hello(
            PROTOCOL_VERSION,
            self._id,
            self._options.name,
            os.getpid(),
            self._options.slots,
            self._outbox.ledger_id,
            self._supervisor.held() + self._outbox.refs(),
            ".".join(str(part) for part in sys.version_info[:3]),
            _package_versions(),
            home=self._home,
            host=socket.gethostname(),
            nworkers=self._options.nworkers,
            nthreads=self._options.nthreads,
            pool=self._options.pool,
            memory_limit=self._memory_limit,
            resources=dict(self._options.resources),
            clusters=self._clusters.clusters,
            leases=self._clusters.leases,
        )

    def _heartbeat(self) -> list[AgentFrame]:
        held = self._supervisor.held() + self._outbox.refs()
        overdue = [outcome for outcome in self._outbox.overdue() if not self._is_held_back(outcome)]
        return [Heartbeat(self._supervisor.free, held), *overdue]

    def _on_welcome(self, welcome: Welcome) -> None:
        if not self._outbox.welcomed(welcome.ledger_id):
            self._supervisor.abandon("the server has another ledger", report=False)
            self._clusters.abandon("the server has another ledger")
            if self._uploads is not None:
                self._uploads.clear()
        for outcome in self._outbox.outcomes():
            self._send(outcome)
        if self._shipper is not None:
            self._shipper.welcomed(welcome.ledger_id)
        self._supervisor.welcome(welcome)
        self._clusters.welcomed(welcome.targets)
        log.info("connected", extra={"action": "connected", "ledger_id": welcome.ledger_id})

    def _on_frames(self, frames: list[ServerFrame]) -> None:
        for frame in frames:
            if isinstance(frame, Start):
                if (frame.seq, frame.attempt) not in self._outbox:
                    self._supervisor.start(frame)
            elif isinstance(frame, Ack):
                self._outbox.acknowledge(frame.seq, frame.attempt)
                if self._uploads is not None:
                    self._uploads.forget((frame.seq, frame.attempt))
                self._acknowledged.set()
            elif isinstance(frame, Cancel):
                # One that has ended already: its outcome is on the way, and that is the answer.
                if (frame.seq, frame.attempt) not in self._outbox:
                    self._supervisor.cancel(frame)
            elif isinstance(frame, HostFrame):
                self._clusters.handle(frame)
            elif isinstance(frame, JobCluster):
                self._supervisor.job_cluster(frame)
            elif isinstance(frame, LogAck):
                if self._shipper is not None:
                    self._shipper.acknowledged(frame)
            elif isinstance(frame, Shutdown):
                self._end_in(frame.drain_s)
            elif isinstance(frame, Welcome):
                self._on_welcome(frame)

    def _deliver(self, outcome: Outcome) -> None:
        self._outbox.add(outcome)
        self._send(outcome)
        if self._shipper is not None:
            self._shipper.ended((outcome.seq, outcome.attempt))

    def _report(self, frame: Ready | Progress | LogGrown | LogChunk | ClusterAgentFrame) -> None:
        """Tell the server what may get lost on the way; to one far away, the log itself instead of its growth."""
        if isinstance(frame, LogGrown) and self._shipper is not None:
            self._shipper.grew(frame.seq, frame.run, frame.attempt)
        else:
            self._link.send(frame)

    def _on_lost(self) -> None:
        self._outbox.disconnected()
        if self._shipper is not None:
            self._shipper.lost()

    def _has_moved(self) -> None:
        self._acknowledged.set()

    @property
    def _ships(self) -> bool:
        """Whether logs are still to be sent."""
        return self._shipper is not None and self._shipper.busy

    def _send(self, outcome: Outcome) -> None:
        if not self._is_held_back(outcome):
            self._link.send(outcome)

    def _is_held_back(self, outcome: Outcome) -> bool:
        """Whether its result has still to be brought to the server."""
        return self._uploads is not None and self._uploads.is_due(outcome)


def _package_versions() -> dict[str, str]:
    """Return the versions of what shapes results here, without importing any of it."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
