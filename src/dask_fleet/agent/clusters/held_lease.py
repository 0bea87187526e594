"""One slot lease that this agent serves: a Dask worker, from the grant until nothing of it is left.

A client may restart the worker (``Client.restart``). In a fresh process that is another process on the same lease, as with
Dask's nannies: its slots stay taken, and the old process has ended before the new one joins. In a shared one the next worker
is made beside what tasks of before still do; where they do not end, the process is replaced and the lease given up with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from dask_fleet.agent import deaths
from dask_fleet.agent.clusters.authority import expiry_us, request_certificate
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.frames import Join, Joined, Leave, Left, Released, Renew, Stragglers
from dask_fleet.agent.deaths import Death
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.model.dask_configuration import memory_part
from dask_fleet.protocol.cluster_frames import GrantSlots, Signature, SlotsJoined, SlotsLeft, WantSignature

log = logging.getLogger(__name__)

PLACE_S = 15.0
"""How long a lease may wait for free threads: attempts that were sent a little ahead may hold them."""
SIGN_S = 15.0
START_S = 60.0
"""What a Dask worker may need for its own part of its start, preloads and plug-ins."""
ANSWER_S = 600.0
"""How long it asks its scheduler, which may be busy with a large graph. Then it is begun anew, which may help."""
_LEAVE_S = 10.0
"""How long a Dask worker may take to leave before its process is killed."""
_KILLED_S = 10.0
_UNASKED_GRACE_S = 10.0
"""What tasks get whose cluster ended under them, where their process serves others too."""
_STRAGGLERS_S = 10.0
"""What they get after a client has restarted their cluster."""


class Lender(Protocol):
    """Where the threads and processes come from."""

    async def lend(self, threads: int) -> None:
        """Wait until so many threads are free, and count them as taken."""
        ...

    def give_back(self, threads: int) -> None:
        """Count them as free."""
        ...

    def shared_process(self, tenant: str, threads: int) -> WorkerProcess | None:
        """Return a process that serves this tenant, or nobody yet, and has so many free threads."""
        ...

    async def fresh_process(self) -> WorkerProcess:
        """Return a process that has served nobody."""
        ...

    def make_scratch(self, lease: str, wanted: object) -> Awaitable[Path]:
        """Make a lease's scratch folder."""
        ...

    def wipe_scratch(self, lease: str) -> Awaitable[None]:
        """Remove it."""
        ...


class Gone(Exception):
    """The lease is over; the text says why."""


class Impossible(Gone):
    """What the grant asks for cannot be, here or elsewhere."""


class HeldLease:
    """The Dask worker of one lease.

    Parameters
    ----------
    local
        Waits until this agent's own scheduler of the cluster listens, and returns its address and the worker's credentials;
        ``None`` if the scheduler is another agent's.
    """

    def __init__(
        self,
        grant: GrantSlots,
        *,
        lender: Lender,
        host: str,
        memory_limit_bytes: int,
        nthreads: int,
        local: Callable[[], Coroutine[Any, Any, tuple[str, Credentials]]] | None,
        send: Callable[[Any], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.grant = grant
        self.address = ""
        """Of its Dask worker, while that is a member."""
        self.expires_us = 0
        """When its certificate does."""
        self._lender = lender
        self._host = host
        self._memory_limit_bytes = memory_limit_bytes
        self._nthreads = nthreads
        self._slots = grant.slots or grant.threads
        self._local = local
        self._send = send
        self._leaving: asyncio.Future[str] = loop.create_future()
        self._grace_s = _UNASKED_GRACE_S
        self._taken = False
        self._joined = False
        self._failed = False
        """It never joined, for a reason of its own: see `SlotsLeft`."""
        self._parting = False
        self._died = ""
        """How its process ended, if that was not our doing."""
        self._signature: asyncio.Future[Signature] | None = None
        self._key = ""
        self._signed: Credentials | None = None
        """The last that another agent has signed: a restart needs no server."""
        self._patience: asyncio.TimerHandle | None = None
        """Runs while tasks from before a restart go on."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Know nothing of a process yet."""
        loop = asyncio.get_running_loop()
        self._process: WorkerProcess | None = None
        self._left: asyncio.Future[str] = loop.create_future()
        self._released: asyncio.Future[None] = loop.create_future()
        self._exited: asyncio.Future[None] = loop.create_future()
        self._asked = False
        """Whether its process was asked to join."""
        self._restarting = False
        """Whether it has left for another one to join."""

    @property
    def of(self) -> tuple[str, int]:
        """The cluster and its epoch."""
        return self.grant.cluster, self.grant.epoch

    # ------------------------------------------------------------------ life

    async def live(self) -> str:
        """Join, stay, leave, and clean up; returns why it ended. Raises nothing but a cancellation."""
        grant = self.grant
        lent = False
        why = "its agent ended"
        try:
            await self._unless_leaving(self._lender.lend(self._slots), PLACE_S, "this agent has not so many free threads")
            lent = True
            while True:
                process = self._process = await self._take_process()
                await self._join(process)
                await asyncio.wait([self._left, self._leaving], return_when=asyncio.FIRST_COMPLETED)
                if self._leaving.done() or not self._restarting:
                    break
                await self._end_process(process)
                self._begin_anew()
            why = self._left.result() if self._left.done() else self._leaving.result()
        except Gone as exc:
            why = str(exc)
            self._failed = isinstance(exc, Impossible)
        except (OSError, EOFError, ValueError) as exc:
            why = f"its worker process could not be had: {exc}"
        except Exception as exc:
            log.exception("a lease failed", extra={"action": "lease_failed", "lease": grant.lease})
            why = f"its agent failed: {type(exc).__name__}: {exc}"
        finally:
            if self._process is not None:
                await self._part(self._process)
            await self._lender.wipe_scratch(grant.lease)
            if lent:
                self._lender.give_back(self._slots)
        # Its process's end says more than what its worker saw of it, and so does its scheduler's.
        return self._died or (self._leaving.result() if self._leaving.done() else why)

    async def _take_process(self) -> WorkerProcess:
        grant = self.grant
        if grant.env and not grant.fresh:
            raise Impossible("a shared process has one environment for all who use it; variables need fresh processes")
        process = None if grant.fresh else self._lender.shared_process(grant.tenant, grant.threads)
        if process is None:  # a lease that may share gets one of its own where none can take it
            process = await self._lender.fresh_process()
            process.nthreads = grant.threads
            process.limit_bytes = self._fresh_limit_bytes()
            if (kill_at := memory_part(grant.config, "terminate")) is not None:
                process.kill_at = kill_at
        process.tenant = grant.tenant
        process.leases.add(grant.lease)
        process.lent += grant.threads
        return process

    async def _end_process(self, process: WorkerProcess) -> None:
        """End a process in whose place another one is to join; its threads are not free before it has ended."""
        process.kill(deaths.RESTARTED)
        await asyncio.wait([self._exited], timeout=_KILLED_S)
        if not self._exited.done():
            raise Gone("its worker process could not be ended for a restart")
        self._give_up(process)
        log.info("a client restarted a worker", extra={"action": "worker_restarted", "lease": self.grant.lease})

    def _give_up(self, process: WorkerProcess) -> None:
        process.lent -= self.grant.threads
        process.leases.discard(self.grant.lease)

    def _fresh_limit_bytes(self) -> int | None:
        """Return what a process of its own may use: what was asked for, or the part that goes with its threads."""
        grant = self.grant
        if grant.memory_limit_bytes is not None or not self._memory_limit_bytes:
            return grant.memory_limit_bytes
        return self._memory_limit_bytes * grant.threads // self._nthreads

    async def _join(self, process: WorkerProcess) -> None:
        grant = self.grant
        wanted = grant.config.get("temporary-directory")
        try:
            folder = await self._lender.make_scratch(grant.lease, wanted)
        except OSError as exc:
            if wanted:
                raise Impossible(f"its temporary-directory cannot be had: {exc}") from exc
            raise
        if self._local is not None:
            address, credentials = await self._unless_leaving(self._local(), None, "")
        else:
            address, credentials = grant.address, self._signed or await self._ask_for_signature()
        self.expires_us = credentials.expires_us
        limit = self._memory_limit_bytes if process.limit_bytes is None else process.limit_bytes
        self._asked = True
        process.send(
            Join(
                membership=grant.lease,
                cluster=grant.cluster,
                scheduler=address,
                credentials=credentials,
                host=self._host,
                name=grant.worker,
                nthreads=grant.threads,
                memory_limit=limit,
                local_directory=str(folder),
                resources=grant.resources,
                config=grant.config,
                preloads=grant.preload,
                env=grant.env,
                timeout_s=START_S,
                answer_s=ANSWER_S,
                fresh=grant.fresh,
            )
        )

    async def _ask_for_signature(self) -> Credentials:
        request, self._key = request_certificate(f"worker of {self.grant.cluster}")
        self._signature = asyncio.get_running_loop().create_future()
        self._send(WantSignature(self.grant.lease, request))
        signature = await self._unless_leaving(self._signature, SIGN_S, "its certificate was not signed in time")
        return self._credentials(signature)

    def _credentials(self, signature: Signature) -> Credentials:
        if not signature.certificate:
            raise Gone("its certificate was refused by the agent of the scheduler")
        certificate = signature.certificate.decode()
        self._signed = Credentials(signature.ca.decode(), certificate, self._key, expiry_us(certificate))
        return self._signed

    async def _unless_leaving(
        self, step: Coroutine[Any, Any, Any] | asyncio.Future[Any], timeout_s: float | None, too_late: str
    ) -> Any:
        """Wait for `step`, but no longer than until the lease is to end."""
        name = f"lease-step-{self.grant.lease}"
        task = step if isinstance(step, asyncio.Future) else asyncio.create_task(step, name=name)
        try:
            await asyncio.wait([task, self._leaving], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Gone(self._leaving.result() if self._leaving.done() else too_late)
        finally:
            task.cancel()

    async def _part(self, process: WorkerProcess) -> None:
        """Leave, let tasks end, and end the process if it was only for this lease or does not get rid of it."""
        try:
            at_once = process.for_lease and self._taken and self._grace_s <= 0
            if self._asked and not self._released.done() and not at_once:
                process.send(Leave(self.grant.lease))  # one that has left already answers all the same
                await asyncio.wait([self._left], timeout=_LEAVE_S)
                if self._left.done() and (self._taken or not process.for_lease):
                    await asyncio.wait([self._released], timeout=self._grace_s)
        finally:
            self._parting = True
            self._be_patient(on=False)
            if process.for_lease:
                process.kill(deaths.LEASE_OVER)
            elif self._asked and not self._released.done():
                process.kill(deaths.FOR_A_CLUSTER)
            if (process.for_lease or (self._asked and not self._released.done())) and not process.ended:
                await asyncio.wait([self._exited], timeout=_KILLED_S)  # its threads are not free before it has ended
            self._give_up(process)

    # ------------------------------------------------------------------ what happens to it

    def take(self, grace_s: float, why: str = "taken back") -> None:
        """Let it leave. Asked again, the shorter grace counts if it has not begun to wait."""
        self._grace_s = min(self._grace_s, grace_s) if self._taken else grace_s
        self._taken = True
        self.end(why)

    def end(self, why: str) -> None:
        """Let it leave, because its cluster has ended. Twice is harmless."""
        if not self._leaving.done():
            self._leaving.set_result(why)

    def signed(self, signature: Signature) -> None:
        """Take the answer to a `WantSignature`."""
        if self._signature is not None and not self._signature.done():
            self._signature.set_result(signature)
        elif self.address and self._process is not None and signature.certificate:
            credentials = self._credentials(signature)
            self.expires_us = credentials.expires_us
            self._process.send(Renew(self.grant.lease, credentials))

    def renew(self, credentials: Credentials | None) -> None:
        """Let its worker show a fresh certificate; without one, ask for it, with a fresh key."""
        if not self.address or self._process is None:
            return
        if credentials is not None:
            self.expires_us = credentials.expires_us
            self._process.send(Renew(self.grant.lease, credentials))
        else:
            request, self._key = request_certificate(f"worker of {self.grant.cluster}")
            self._send(WantSignature(self.grant.lease, request))

    def tell(self) -> None:
        """Tell the server that it has joined; nothing if it has not (yet)."""
        if self.address and not self._leaving.done():
            self._send(SlotsJoined(self.grant.lease, self.address))

    def heard(self, frame: Joined | Left | Stragglers | Released) -> None:
        """Take what its process says."""
        if isinstance(frame, Joined):
            self._joined = True
            self.address = frame.address
            self.tell()
        elif isinstance(frame, Stragglers):
            self._be_patient(on=frame.busy > 0)
        elif isinstance(frame, Left):
            self.address = ""
            if not self._left.done():
                self._failed = frame.failed and not frame.unanswered
                self._restarting = frame.restart
                self._left.set_result(f"it could not join: {frame.reason}" if frame.failed else frame.reason)
        elif not self._released.done():
            self._released.set_result(None)

    def _be_patient(self, *, on: bool) -> None:
        """Begin to wait for tasks from before a restart, if that has not begun, or stop it."""
        if on and self._patience is None and not self._parting:
            self._patience = asyncio.get_running_loop().call_later(_STRAGGLERS_S, self._lose_patience)
        elif not on and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        if self._process is not None:
            log.warning(
                "worker process killed: tasks from before a restart did not end in time",
                extra={"action": "worker_killed", "worker": self._process.name, "lease": self.grant.lease},
            )
            self._process.kill(deaths.FOR_A_RESTART)

    def process_ended(self, death: Death) -> None:
        """Its process is no more."""
        self.address = ""
        how = f"its worker process {death.how}"
        if not self._parting and not self._restarting:
            self._died = how
            # One that others use too may have died of them.
            self._failed = self._asked and not self._joined and self._process is not None and self._process.for_lease
        if not self._left.done():
            self._left.set_result(how)
        for future in (self._released, self._exited):
            if not future.done():
                future.set_result(None)

    def gone(self, why: str) -> SlotsLeft:
        """Return the frame that says that nothing is left."""
        return SlotsLeft(self.grant.lease, why, self._failed and not self._leaving.done())
