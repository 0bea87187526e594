"""Dask's scheduler as a cluster's scheduler: TLS on an explicit host, no proxy, no listener that nobody asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import dask
from dask.utils import format_bytes
from distributed import Scheduler
from distributed.http.utils import get_handlers

from dask_fleet.agent.clusters import dask_config, nanny, restarting
from dask_fleet.agent.clusters.frames import Open, SchedulerState
from dask_fleet.agent.clusters.rehearsal import CLIENT_PREFIX
from dask_fleet.agent.clusters.security import MemberSecurity
from dask_fleet.model.dask_configuration import flat

log = logging.getLogger(__name__)

IDLE_HEARTBEAT_S = 2.0
"""How often workers report when nothing is in flight. Dask says 0.5 s, which is most of what an idle cluster costs."""
SEND_INTERVAL_S = 0.002
"""The shortest time between two messages to a worker. Dask says 5 ms, and a worker of one thread holds two tasks at most."""
_BACK_S = 30.0
"""How long whoever registers a plug-in that restarts workers waits for them."""
_NOBODY = ("Client-worker-", "fire-and-forget", CLIENT_PREFIX)
"""Clients that are not anybody's who uses the cluster."""


class FleetScheduler(Scheduler):  # type: ignore[misc]
    """The scheduler of one cluster; made by `make`."""

    def __init__(self, *, serve_http: bool, **options: Any) -> None:
        self._serve_http = serve_http
        self.close_reason = ""
        self.on_deaf: Callable[[list[str]], None] = lambda _: None
        """Takes the addresses of workers whose processes are to be replaced, for they do not answer."""
        super().__init__(**options)

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Listen for the dashboard if it is on. Dask listens on port 8787 even with ``dashboard=False``."""
        if self._serve_http:
            super().start_http_server(*args, **kwargs)
            self.http_application.add_application(LateDashboard(self))

    @property
    def dashboard_url(self) -> str:
        """Where the dashboard is, empty if it is off."""
        if not self._serve_http:
            return ""
        return f"http://{self.http_server.address}:{self.http_server.port}/status"

    async def close(self, timeout: float | None = None, reason: str = "unknown") -> None:  # noqa: ASYNC109
        """Close, and keep the first reason."""
        self.close_reason = self.close_reason or reason
        await super().close(timeout=timeout, reason=reason)

    async def handle_worker(self, comm: Any, worker: str) -> None:
        """Listen to a worker that has joined, and send to it sooner than Dask does."""
        self.stream_comms[worker].interval = SEND_INTERVAL_S
        await super().handle_worker(comm, worker)

    def limit_idle(self, seconds: float | None) -> None:
        """Close after so long without work; that time begins anew."""
        self.idle_timeout = seconds
        self.idle_since = time.time()

    def heartbeat_worker(self, **heartbeat: Any) -> dict[str, Any]:
        """Take a heartbeat; an idle worker may wait longer before the next."""
        answer: dict[str, Any] = super().heartbeat_worker(**heartbeat)
        if self.idle_since and "heartbeat-interval" in answer:
            answer["heartbeat-interval"] = max(answer["heartbeat-interval"], IDLE_HEARTBEAT_S)
        return answer

    def why_kept(self, names: set[str]) -> dict[str, str]:
        """Say of workers that were to retire why their data could not be moved; nothing of those that are gone."""
        kept = {}
        for worker in self.workers.values():
            if str(worker.name) in names:
                others = [other for other in self.workers.values() if other is not worker and str(other.name) not in names]
                size = format_bytes(worker.nbytes)
                if worker.actors:
                    why = f"it holds {len(worker.actors)} actors, which cannot be moved"
                elif not others:
                    why = f"there is no worker that stays to take its {size}"
                else:
                    why = f"none of the {len(others)} others has memory for its {size}"
                kept[str(worker.name)] = why
        return kept

    async def restart_workers(
        self,
        workers: list[str] | None = None,
        *,
        client: str | None = None,
        timeout: float = 30,  # noqa: ASYNC109 - Dask's signature
        wait_for_workers: bool = True,
        on_error: str = "raise",
        stimulus_id: str,
    ) -> dict[str, Any]:
        """Restart workers; those that do not answer, too."""
        return dict(
            await restarting.restart_workers(
                self, workers, replace=self.on_deaf, client=client, timeout_s=timeout,
                wait_for_workers=wait_for_workers, on_error=on_error, stimulus_id=stimulus_id,
            )
        )  # fmt: skip

    async def register_nanny_plugin(self, comm: None, plugin: bytes, name: str, idempotent: bool) -> dict[str, Any]:  # noqa: FBT001
        """Register a plug-in; returns when the workers that it restarts are back."""
        before = dict(self.workers)
        answers: dict[str, Any] = await super().register_nanny_plugin(comm, plugin, name, idempotent)
        if [answer for answer in answers.values() if answer.pop(nanny.REFUSED, False)]:
            self.nanny_plugins.pop(name, None)
        restarted = [address for address, answer in answers.items() if answer.pop(nanny.RESTARTS, False)]
        there = {**self.workers, **before}  # some may have joined meanwhile
        old = [there[address] for address in restarted if address in there]
        if old and not await restarting.until_back(self, old, len(before), _BACK_S):
            log.warning("workers that a plug-in restarts are not back yet", extra={"action": "slow_restart", "plugin": name})
        return answers

    def fleet_state(self, cluster: str, lag_s: float) -> SchedulerState:
        """Return what the agent is told. Cheap: it looks at workers, not at tasks."""
        unrunnable = len(self.unrunnable)
        tasks = sum(len(worker.processing) for worker in self.workers.values()) + len(self.queued) + unrunnable
        clients = sum(not client.startswith(_NOBODY) for client in self.clients)
        idle_us = int(self.idle_since * 1e6) if self.idle_since and not tasks else 0
        return SchedulerState(cluster, len(self.workers), self.total_nthreads, tasks, unrunnable, clients, idle_us, lag_s)


class LateDashboard:
    """Stands among the applications of a scheduler's HTTP server until the first request that nothing else answers: then
    only is the dashboard put together, which takes bokeh as long as a cluster takes to come up. Most are never looked at.
    """

    def __init__(self, scheduler: FleetScheduler) -> None:
        self._scheduler = scheduler

    def find_handler(self, request: Any, **kwargs: Any) -> Any:
        """Return what the dashboard answers with; as of ``tornado.web.Application``."""
        server = self._scheduler
        server.http_application.applications.remove(self)
        try:
            from distributed.dashboard.scheduler import connect
        except ImportError:
            pages = get_handlers(server=server, modules=["distributed.http.scheduler.missing_bokeh"], prefix="")
            server.http_application.add_handlers(".*$", pages)
        else:
            connect(server.http_application, server.http_server, server)
        return server.http_application.find_handler(request, **kwargs)


def make(request: Open) -> FleetScheduler:
    """Make the scheduler that `request` describes; to be awaited. Sets Dask's configuration of this process.

    Raises
    ------
    ValueError
        If the host is a wildcard.
    """
    if request.host in ("", "0.0.0.0", "::", "[::]"):  # noqa: S104
        raise ValueError(f"a scheduler listens on one address of its host, not on {request.host!r}")
    if request.for_job:
        dask_config.set_job_scheduler_defaults()
    dask.config.set(flat(request.config))
    dask.config.set({"distributed.scheduler.http.routes": dask_config.without_proxy() if request.dashboard else []})
    # Dask's scheduler takes no folder. Where the workers spill to it would leave its locks, or if killed all it has.
    with dask.config.set({"temporary-directory": request.folder} if request.folder else {}):
        return FleetScheduler(
            serve_http=request.dashboard,
            dashboard=False,  # of Dask's own making: ours comes when it is asked for
            dashboard_address="127.0.0.1:0",
            protocol="tls",
            host=request.host,
            port=0,
            security=MemberSecurity(request.credentials),
            preload=request.preloads or None,
            idle_timeout=request.idle_timeout_s,
            allowed_failures=request.allowed_failures,
        )
