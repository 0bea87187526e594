"""The local backend: one agent on this host, in a process session of its own, so that it outlives the server."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dask_fleet.backends.holder import AgentProcess, holder_pid
from dask_fleet.config.resources import resources_text
from dask_fleet.config.secret import without_secrets
from dask_fleet.config.settings import MAX_CERTIFICATE_LIFETIME_S
from dask_fleet.observability.rotation import open_log, rotate
from dask_fleet.plugins.backend import Backend, Health

log = logging.getLogger(__name__)

_POLL_S = 0.02
_KILL_S = 5.0
"""How long what is left of the agent's session may take to vanish after SIGKILL."""
_DISMISSED_S = 1.0
"""How long an agent that the server refuses may take to end: nobody waits for what it runs, for it can tell nobody."""


class LocalBackend(Backend):
    """Runs ``python -m dask_fleet.agent`` beside the server.

    Parameters
    ----------
    data_dir
        The server's data folder; the agent finds the server by ``server.json`` in it and logs to ``agent.log``.
    nworkers, nthreads
        Worker processes, and threads of each.
    memory_limit
        Of each worker process: bytes as text, ``auto`` or ``none``.
    spares
        Scheduler processes it keeps ready.
    resources
        Named resources of this host.
    cluster_host
        Where schedulers and Dask workers listen; empty for the address that faces the server, which is loopback.
    orphan_timeout_s
        How long the agent waits for a server that is away.
    python
        The interpreter; this one by default.
    token_file
        File with the agent's token; ``DATA_DIR/agent.token`` by default.
    name
        The agent's name.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        nworkers: int,
        nthreads: int = 1,
        memory_limit: str = "auto",
        spares: int = 1,
        resources: Mapping[str, float] | None = None,
        scheduler_memory_limit: str = "auto",
        certificate_lifetime_s: float = MAX_CERTIFICATE_LIFETIME_S,
        cluster_host: str = "",
        orphan_timeout_s: float = 60.0,
        python: str | None = None,
        token_file: Path | None = None,
        name: str = "local",
    ) -> None:
        self._data_dir = data_dir.resolve()
        self._log = self._data_dir / "agent.log"
        self._lock = self._data_dir / "agent.lock"
        self._nworkers = nworkers
        self._nthreads = nthreads
        self._memory_limit = memory_limit
        self._spares = spares
        self._resources = dict(resources or {})
        self._scheduler_memory_limit = scheduler_memory_limit
        self._certificate_lifetime_s = certificate_lifetime_s
        self._cluster_host = cluster_host
        self._orphan_timeout_s = orphan_timeout_s
        self._python = python or sys.executable
        self._token_file = (token_file or self._data_dir / "agent.token").resolve()
        self._name = name
        self._child: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the agent's command line. It carries no secret: everyone on the host can read it."""
        return [
            self._python,
            "-m",
            "dask_fleet.agent",
            "--server-file",
            str(self._data_dir / "server.json"),
            "--token-file",
            str(self._token_file),
            "--data-dir",
            str(self._data_dir),
            "--name",
            self._name,
            "--nworkers",
            str(self._nworkers),
            "--nthreads",
            str(self._nthreads),
            "--memory-limit",
            self._memory_limit,
            "--orphan-timeout",
            f"{self._orphan_timeout_s:g}",
            "--spares",
            str(self._spares),
            "--log-file",
            str(self._log),
            *(["--resources", resources_text(self._resources)] if self._resources else []),
            "--scheduler-memory-limit",
            self._scheduler_memory_limit,
            "--certificate-lifetime",
            f"{self._certificate_lifetime_s:g}",
            *(["--cluster-host", self._cluster_host] if self._cluster_host else []),
        ]

    async def start(self) -> None:
        """Launch the agent, or adopt the one that holds the lock of the data folder."""
        if (pid := holder_pid(self._lock)) is not None:
            log.info("agent adopted", extra={"action": "agent_adopted", "pid": pid})
            return
        if self._child is not None and self._child.poll() is None:
            return
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        rotate(self._log)
        output = open_log(self._log)
        try:
            # Popen returns when the program runs, a few milliseconds: not worth a thread at start.
            self._child = subprocess.Popen(  # noqa: ASYNC220
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=without_secrets(os.environ),
            )
        finally:
            os.close(output)
        log.info("agent launched", extra={"action": "agent_launched", "pid": self._child.pid})

    async def health(self) -> Health:
        """Return whether an agent holds the lock, or is about to."""
        try:
            if holder_pid(self._lock) is not None:
                return Health.RUNNING
        except OSError:
            return Health.UNKNOWN
        if self._child is not None and self._child.poll() is None:
            return Health.STARTING
        return Health.GONE

    async def dismiss(self, pid: int) -> bool:
        """End the agent that holds the lock if its process is `pid`, with all that it has started."""
        found = AgentProcess.holding(self._lock)
        if found is None:
            return False
        with found:
            if found.pid != pid:
                return False
            log.warning("ending an agent of another version", extra={"action": "agent_dismissed", "pid": pid})
            await self._end(found, _DISMISSED_S)
        return True

    async def stop(self, *, timeout_s: float) -> None:
        """Ask the agent to end (SIGTERM); after `timeout_s` kill whatever lives in its session."""
        found = AgentProcess.holding(self._lock)
        if found is None and self._child is not None and self._child.poll() is None:
            found = AgentProcess.open(self._child.pid)
        if found is None:
            return
        with found:
            await self._end(found, timeout_s)

    async def _end(self, agent: AgentProcess, timeout_s: float) -> None:
        agent.ask_to_end()
        if not await self._gone(agent, timeout_s):
            log.warning(
                "agent killed: it did not end in %g s", timeout_s, extra={"action": "agent_killed", "pid": agent.pid}
            )
            loop = asyncio.get_running_loop()
            until = loop.time() + _KILL_S
            while loop.time() < until:  # again, for a process may have been forking
                agent.kill()
                if await self._gone(agent, _POLL_S):
                    break
        if self._child is not None:
            self._child.poll()

    async def _gone(self, agent: AgentProcess, timeout_s: float) -> bool:
        """Wait until nothing of the agent is left; returns whether that is so."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while True:
            if self._child is not None:
                self._child.poll()  # reaps it
            if not agent.left():
                return True
            if loop.time() >= until:
                return False
            await asyncio.sleep(_POLL_S)
