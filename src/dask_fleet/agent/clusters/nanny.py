"""What the scheduler takes for a Dask worker's nanny, so that restarts and nanny plug-ins work.

The agent does what nannies did; what is left of one lives in the worker's own process. So plug-ins are set up in each
process that the worker has, before the worker is made, instead of once in a process beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from distributed.comm import connect
from distributed.core import Server, Status, error_message
from distributed.diagnostics.plugin import NannyPlugin
from distributed.protocol.pickle import loads
from distributed.worker import run

from dask_fleet.agent.clusters.frames import Join
from dask_fleet.agent.clusters.security import MemberSecurity

log = logging.getLogger(__name__)

RESTARTS = "restarts"
"""What the answer to a plug-in says besides ``OK`` if its worker is about to be restarted."""
REFUSED = "refused"
"""What it says besides ``error`` if the plug-in is not, and never will be, set up there."""
_AGAIN_S = 0.1
_SET_UP_S = 600.0
"""What plug-ins may take before a worker is made; some install packages."""
_READY_S = 10.0
_TEARDOWN_S = 5.0
_SHARED = (
    "this Dask worker shares its process with jobs and other clusters of its tenant, so {} would touch them. Take a cluster "
    "of its own processes (FleetCluster without shared=True), or use {}"
)


class MemberNanny(Server):  # type: ignore[misc]
    """The nanny of one membership.

    It has what plug-ins use of ``distributed.Nanny``: `env`, ``local_directory``, `plugins`, `scheduler`, ``loop``, `name`,
    `nthreads`, `pid`, `worker_address`, `worker_dir`, ``log_event``, `kill`, `restart`.

    Parameters
    ----------
    end_worker
        Ends the Dask worker, the scheduler having taken note.
    go_on
        Called when whoever asked for a restart has been answered: lets the next worker come.
    """

    def __init__(
        self,
        join: Join,
        security: MemberSecurity,
        scratch: str,
        *,
        end_worker: Callable[[str], Awaitable[None]],
        go_on: Callable[[], None],
    ) -> None:
        self.name, self.nthreads, self.scheduler_addr = join.name, join.nthreads, join.scheduler
        self.env = dict(join.env)
        """Variables of the worker; what a plug-in sets here before the worker is made, its tasks see."""
        self.plugins: dict[str, NannyPlugin] = {}
        self.worker: Any = None
        """The Dask worker, once there is one."""
        self.security = security
        self.connection_args = security.get_connection_args("worker")
        self._fresh = join.fresh
        self._end_worker, self._go_on = end_worker, go_on
        self._registration: Any = None
        self._changing = asyncio.Lock()
        super().__init__(
            handlers={
                "kill": self._answer_kill,
                "restart": self._answer_restart,
                "run": self._answer_run,
                "plugin_add": self._add,
                "plugin_remove": self._remove,
                "get_logs": self._no_logs,
                "instantiate": self._nothing,
                "close_gracefully": self._nothing,
                "terminate": self._nothing,
            },
            connection_args=self.connection_args,
            local_directory=scratch,
            needs_workdir=False,
        )
        self.scheduler = self.rpc(join.scheduler)
        if not join.fresh:
            with contextlib.suppress(ValueError):
                sys.path.remove(self.local_directory)  # every server of Dask puts its folder there

    # ------------------------------------------------------------------ what plug-ins use

    @property
    def pid(self) -> int:
        """The worker's process, which is ours."""
        return os.getpid()

    @property
    def worker_address(self) -> str | None:
        """Where the worker listens."""
        return None if self.worker is None or not self.worker.listeners else str(self.worker.address)

    @property
    def worker_dir(self) -> str | None:
        """Its scratch folder."""
        return None if self.worker is None else str(self.worker.local_directory)

    async def kill(self, timeout: float | None = None, reason: str = "nanny-kill") -> None:  # noqa: ARG002, ASYNC109
        """Let the worker be restarted; returns when the scheduler has taken note."""
        await self._end_worker(reason)
        self._go_on()

    async def restart(self, timeout: float | None = None, reason: str = "nanny-restart") -> str:  # noqa: ARG002, ASYNC109
        """Do as `kill`."""
        await self.kill(reason=reason)
        return "OK"

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Let the scheduler log an event."""
        self._ongoing_background_tasks.call_soon(self._log_event, topic, msg)

    async def _log_event(self, topic: str | list[str], msg: Any) -> None:
        await self.scheduler.log_event(topic=topic, msg=msg)

    # ------------------------------------------------------------------ life

    async def ask(self) -> dict[str, bytes]:
        """Fetch the cluster's plug-ins, however long the scheduler takes. Those registered from now on wait for `ready`."""
        while True:
            try:
                comm = self._registration = await connect(self.scheduler_addr, **self.connection_args)
                comm.name = "Nanny->Scheduler (registration)"
                await comm.write({"op": "register_nanny", "address": self.address, "reply": False, "close": True})
                return dict((await comm.read())["nanny-plugins"])
            except OSError as exc:
                log.debug("no answer yet: %r", exc)
                await asyncio.sleep(_AGAIN_S)

    async def set_up(self, plugins: dict[str, bytes]) -> None:
        """Set plug-ins up, and the environment of the worker that is about to be made.

        Raises
        ------
        TimeoutError
            If that takes too long.
        """
        try:
            async with asyncio.timeout(_SET_UP_S):
                for name, plugin in plugins.items():
                    await self._set_up(name, plugin)
        except TimeoutError:
            raise TimeoutError(f"its nanny plug-ins {sorted(plugins)} were not set up within {_SET_UP_S:g} s") from None
        os.environ.update(self.env)

    async def ready(self) -> None:
        """Say that the worker is there, or that there will be none. Twice is harmless."""
        comm, self._registration = self._registration, None
        if comm is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_READY_S):
                    await comm.write({"status": "ok"})
                    await comm.close()

    async def tear_down(self) -> None:
        """Give plug-ins their end, and stop. Does not raise, and ends in bounded time."""
        await self.ready()
        try:
            async with asyncio.timeout(_TEARDOWN_S):
                for name in list(self.plugins):
                    await self._remove(name)
        except TimeoutError:
            log.warning("nanny plug-ins did not end in time", extra={"action": "teardown_timeout"})
        self.worker = None  # timers of Dask refer to a server for a while; to the worker's memory they must not
        await self.close()

    async def _set_up(self, name: str, pickled: bytes) -> dict[str, Any]:
        """Add a plug-in; returns what Dask's nanny answers. One that fails stops no worker."""
        async with self._changing:
            try:
                plugin = self.plugins[name] = loads(pickled)  # its client runs code in this process anyway
                done = plugin.setup(nanny=self)
                if isawaitable(done):
                    await done
            except Exception as exc:
                log.exception("nanny plug-in %s failed to set up", name)
                return dict(error_message(exc))
        return {"status": "OK"}

    # ------------------------------------------------------------------ what the scheduler asks

    async def _answer_kill(self, comm: Any, reason: str = "restart", **_: Any) -> Status:
        return await self._answer_after(comm, reason, None)

    async def _answer_restart(self, comm: Any, reason: str = "restart", **_: Any) -> Status:
        return await self._answer_after(comm, reason, "OK")

    async def _answer_after(self, comm: Any, reason: str, answer: Any) -> Status:
        """Answer before the process may end, and not before the scheduler knows that the worker has."""
        try:
            await self._end_worker(reason)
            await comm.write(answer)
        finally:
            self._go_on()
        return Status.dont_reply

    async def _answer_run(self, comm: Any, **call: Any) -> Any:
        if not self._fresh:
            return _refusal("a function run on its nanny", "client.run without nanny=True")
        return await run(self, comm, **call)

    async def _add(self, plugin: bytes, name: str) -> dict[str, Any]:
        if not self._fresh:
            return _refusal("a nanny plug-in", "a WorkerPlugin, or client.upload_file")
        answer = await self._set_up(name, plugin)
        if answer["status"] == "OK" and getattr(self.plugins[name], "restart", False):
            # It is answered first: the next process wants to register, which waits for the answers of all to this plug-in.
            self._ongoing_background_tasks.call_soon(self.kill, reason=f"nanny-plugin-{name}-restart")
            answer[RESTARTS] = True
        return answer

    async def _remove(self, name: str) -> dict[str, Any]:
        async with self._changing:
            try:
                done = self.plugins.pop(name).teardown(nanny=self)
                if isawaitable(done):
                    await done
            except Exception as exc:
                log.exception("nanny plug-in %s failed to end", name)
                return dict(error_message(exc))
        return {"status": "OK"}

    def _nothing(self, **_: Any) -> dict[str, str]:
        """The process belongs to the agent, which makes and ends it."""
        return {"status": "OK"}

    def _no_logs(self, **_: Any) -> list[tuple[str, str]]:
        return []


def _refusal(what: str, instead: str) -> dict[str, Any]:
    return {**error_message(RuntimeError(_SHARED.format(what, instead))), REFUSED: True}
