"""How a `FleetCluster` shows itself: as text, in notebooks, by its dashboard and its logs.

None of it raises or waits for long, whether the cluster is yet to start, has lost its scheduler, or has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import urlsplit

from distributed.core import Status
from distributed.utils import Log, Logs, format_dashboard_link

from dask_fleet.client.cluster_questions import Questions
from dask_fleet.client.cluster_request import Duration
from dask_fleet.client.cluster_size import SizedCluster
from dask_fleet.client.control import in_thread
from dask_fleet.model.durations import parse_duration_s
from dask_fleet.model.errors import FleetError

NO_ANSWER = "the scheduler does not answer; without it there are no logs of the workers either"
"""In the place of the scheduler's logs."""


class ShownCluster(SizedCluster):
    """The part of a `FleetCluster` that people look at."""

    is_lost: bool
    questions: Questions

    @property
    def followed(self) -> bool:
        """Whether `scheduler_info` is up to date."""
        raise NotImplementedError

    @property
    def cluster_id(self) -> str:
        """The server's id of it."""
        return str(self._document.get("cluster_id", ""))

    @property
    def dashboard_link(self) -> str:
        """Address of the dashboard: on the loopback of the scheduler's host. Empty if it has none."""
        parts = urlsplit(self._document.get("dashboard") or "")
        return str(format_dashboard_link(parts.hostname, parts.port)) if parts.hostname else ""

    def get_logs(
        self, cluster: bool = True, scheduler: bool = True, workers: Any = True, *, timeout: Duration = None  # noqa: FBT001, FBT002
    ) -> Any:
        """Return what cluster, scheduler and workers have logged, by name or address.

        Parameters
        ----------
        cluster, scheduler
            Whether to ask the server for what has happened to it, and the scheduler for its logs.
        workers
            Whether to ask all workers, or the addresses of those that are asked.
        timeout
            How long to wait for scheduler and workers; ``None`` as long as their connections last. Who does not answer is
            named in the place of its logs.

        Raises
        ------
        RuntimeError
            If the cluster is closed.
        """
        timeout_s = None if timeout is None else parse_duration_s(timeout)
        return self.sync(self._get_logs, cluster=cluster, scheduler=scheduler, workers=workers, timeout_s=timeout_s)

    async def _get_logs(
        self, cluster: bool = True, scheduler: bool = True, workers: Any = True, timeout_s: float | None = None  # noqa: FBT001, FBT002
    ) -> Logs:
        logs = Logs()
        if cluster:
            said = [line for _, line in self._cluster_manager_logs]
            logs["Cluster"] = Log("\n".join([*await self._story(), *said]))
        if not (scheduler or workers):
            return logs
        try:
            if self.is_lost or self.scheduler_comm is None:
                raise OSError("there is no scheduler")
            question = super()._get_logs(cluster=False, scheduler=scheduler, workers=workers)
            async with asyncio.timeout(timeout_s):
                logs.update(await self.questions.ask(question))
        except OSError:
            logs["Scheduler"] = Log(NO_ANSWER)
        return logs

    async def _story(self) -> list[str]:
        """Return a line for each thing that has happened to it, as far as the server tells."""
        if not self._document:
            return ["it is not started yet"]
        try:
            story = await in_thread(self._taken.story)
        except (FleetError, OSError) as exc:
            return [f"the server does not tell what has happened to it: {exc}"]
        return [f"{event['at']} {event['kind']} {_fields(event['data'])}".rstrip() for event in story]

    def __repr__(self) -> str:
        document = self._document
        if self.status == Status.closed and document:
            return f"FleetCluster({self.name!r}, closed)"
        if self.scheduler_comm is None:
            return f"FleetCluster({self.name!r}, {'starting' if self.status == Status.starting else 'not started'})"
        if self.is_lost:
            return f"FleetCluster({self.name!r}, has lost its scheduler, wanted={self.n_workers})"
        there = len(self.observed) if self.followed else document["workers"]
        wanted = f", wanted={self.n_workers}" if there < self.n_workers else ""
        threads = there * document["threads_per_worker"]
        return f"FleetCluster({self.name!r}, {self.scheduler_address!r}, workers={there}{wanted}, threads={threads})"

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        if self.status == Status.closed and self._document:
            return f"<p>FleetCluster <b>{escape(self.name)}</b> is closed.</p>"
        if self.is_lost:
            return f"<p>FleetCluster <b>{escape(self.name)}</b> has lost its scheduler, and waits for another one.</p>"
        return str(super()._repr_html_(cluster_status))


def _fields(data: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in data.items() if value not in (None, ""))
