"""The synchronous client: a thin face over the asynchronous one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dask_fleet.client.async_client import DEFAULT_PATIENCE_S, DEFAULT_TIMEOUT_S, AsyncClient
from dask_fleet.client.async_job import AsyncJob
from dask_fleet.client.background_loop import BackgroundLoop
from dask_fleet.client.catalogue import Catalogue, EndpointInfo
from dask_fleet.client.endpoints import Endpoint, ServiceNames, split_name
from dask_fleet.client.job import Job
from dask_fleet.client.options import CallOptions
from dask_fleet.config import Secret
from dask_fleet.model.errors import FleetError
from dask_fleet.model.states import RunState


class Client:
    """A connection to a Fleet server. Works in scripts, in notebooks and in threads; its I/O has a thread of its own.

    Parameters
    ----------
    url, token, timeout_s, patience_s, ca_file, fingerprint, transport
        As of `AsyncClient`.

    Examples
    --------
    ::

        with Client() as client:
            table = client.flights.delay_by_carrier(month=1).result()
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | Secret | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience_s: float = DEFAULT_PATIENCE_S,
        ca_file: str | Path | None = None,
        fingerprint: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._inner = AsyncClient(
            url,
            token,
            timeout_s=timeout_s,
            patience_s=patience_s,
            ca_file=ca_file,
            fingerprint=fingerprint,
            transport=transport,
        )
        self._loop = BackgroundLoop("dask-fleet client")
        # Also when nobody calls close, at the latest when the interpreter ends, sockets and thread are let go.
        self._finalizer = weakref.finalize(self, self._loop.close, self._inner.aclose)

    # ------------------------------------------------------------------ life

    @property
    def url(self) -> str:
        """The server."""
        return self._inner.url

    def close(self) -> None:
        """Close all connections and end the thread. Jobs go on. Twice is harmless."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ what there is

    def services(self, *, refresh: bool = False) -> Catalogue:
        """Return what the server offers; asked once, and again with `refresh`."""
        return self._loop.run(self._inner.services(refresh=refresh))

    def service(self, name: str) -> ServiceNames:
        """Return a service by name; also one whose name is that of a method here.

        Raises
        ------
        AttributeError
            If there is none; the message lists what there is.
        """
        catalogue = self.services()
        if name not in catalogue.services:  # the server may have got new code since it was asked
            catalogue = self.services(refresh=True)
        return ServiceNames(self._submit_call, catalogue.service(name))

    def __getattr__(self, name: str) -> ServiceNames:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.service(name)

    def __dir__(self) -> list[str]:
        try:
            names = set(self.services().services)
        except (FleetError, RuntimeError):
            names = set()  # completion must not raise because the server is away
        return sorted({*super().__dir__(), *names})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    # ------------------------------------------------------------------ calls

    def submit(
        self,
        service: str,
        endpoint: str,
        params: Mapping[str, Any] | None = None,
        *,
        wait: float = 0.0,
        priority: int | None = None,
        deadline: float | timedelta | datetime | str | None = None,
        tags: str | Iterable[str] = (),
        refresh: bool = False,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a call by names and return its job: the same job for the same request. See `AsyncClient.submit`."""
        return self._face(
            self._loop.run(
                self._inner.submit(
                    service,
                    endpoint,
                    params,
                    wait=wait,
                    priority=priority,
                    deadline=deadline,
                    tags=tags,
                    refresh=refresh,
                    idempotency_key=idempotency_key,
                )
            )
        )

    def map(self, endpoint: Endpoint | str, items: Iterable[Any], **common: Any) -> list[Job]:
        """Submit a call for each item, a thousand in a request, and return the jobs in the items' order.

        Parameters
        ----------
        endpoint
            ``client.flights.delay_by_carrier`` (with its options, if any) or ``"flights.delay_by_carrier"``.
        items
            A dict gives parameters by name, a tuple in order, any other value is the first parameter.
        common
            Parameters that all calls share.

        Raises
        ------
        FleetError
            The first refusal there is; what was accepted before goes on. `submit_batch` raises none.
        """
        info, options = self._named(endpoint)
        # Items may come from a generator of the caller's: it runs in the caller's thread, before any is sent.
        held = list(items)
        return [self._face(job) for job in self._loop.run(self._inner.map_calls(info, held, common, options))]

    def submit_batch(self, endpoint: Endpoint | str, items: Iterable[Any], **common: Any) -> list[Job | FleetError]:
        """Do what `map` does, but return, in place of its job, why an item was refused."""
        info, options = self._named(endpoint)
        held = list(items)
        answers = self._loop.run(self._inner.batch_calls(info, held, common, options))
        return [answer if isinstance(answer, FleetError) else self._face(answer) for answer in answers]

    def gather(self, jobs: Iterable[Job], *, progress: bool = False) -> list[Any]:
        """Return the results of `jobs` in their order; the first job without a result raises."""
        held = [job._inner for job in jobs]  # noqa: SLF001 - the two files are halves of one thing
        if progress:
            from dask_fleet.client.bars import open_bar

            with open_bar("jobs") as bar:
                return self._loop.run_reported(lambda report: self._inner.reported_gather(held, report), bar.update)
        return self._loop.run(self._inner.gather(held))

    # ------------------------------------------------------------------ jobs

    def job(self, job_id: str) -> Job:
        """Return a job by its id; `NotFound` if there is none."""
        return self._face(self._loop.run(self._inner.job(job_id)))

    def jobs(
        self,
        *,
        state: RunState | str | None = None,
        service: str | None = None,
        endpoint: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Yield jobs, newest first, page by page as they are asked for. See `AsyncClient.jobs`."""
        found = self._inner.jobs(
            state=state,
            service=service,
            endpoint=endpoint,
            user=user,
            tag=tag,
            created_after=created_after,
            created_before=created_before,
            limit=limit,
        )
        return (self._face(job) for job in self._loop.iterate(found))

    def status(self) -> dict[str, Any]:
        """Return what the server says of itself: version, queued and running jobs, agents."""
        return self._loop.run(self._inner.status())

    # ------------------------------------------------------------------ clusters

    def create_cluster(
        self, n_workers: int = 1, *, wait: float = 0.0, idempotency_key: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Take a Dask cluster and return its document. See `AsyncClient.create_cluster`."""
        return self._loop.run(
            self._inner.create_cluster(n_workers, wait=wait, idempotency_key=idempotency_key, **options)
        )

    def list_clusters(self, *, ended: bool = False, spares: bool = False) -> list[dict[str, Any]]:
        """Return the documents of the tenant's clusters, newest first; with `ended` and `spares`, of those as well."""
        return self._loop.run(self._inner.list_clusters(ended=ended, spares=spares))

    def cluster(self, name: str, *, wait: float = 0.0) -> dict[str, Any]:
        """Return the document of a cluster by name or id; with `wait`, once it runs or after so many seconds."""
        return self._loop.run(self._inner.cluster(name, wait=wait))

    def cluster_events(self, name: str) -> list[dict[str, Any]]:
        """Return what has happened to a cluster, oldest first."""
        return self._loop.run(self._inner.cluster_events(name))

    def scale_cluster(self, name: str, n_workers: int) -> dict[str, Any]:
        """Change how many workers a cluster is to have, and return its document."""
        return self._loop.run(self._inner.scale_cluster(name, n_workers))

    def close_cluster(self, name: str, *, wait: float = 0.0) -> dict[str, Any]:
        """Close a cluster and return its document; with `wait`, once it has ended or after so many seconds."""
        return self._loop.run(self._inner.close_cluster(name, wait=wait))

    # ------------------------------------------------------------------ tokens

    def create_token(
        self, *, user: str, scopes: Iterable[str], tenant: str | None = None, expires: float | str | None = None
    ) -> dict[str, Any]:
        """Make a token; ``["token"]`` of the answer is the token, never to be seen again. See `AsyncClient.create_token`."""
        return self._loop.run(self._inner.create_token(user=user, scopes=scopes, tenant=tenant, expires=expires))

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return all tokens, ended ones too: whose they are and what they may do, never the tokens themselves."""
        return self._loop.run(self._inner.list_tokens())

    def revoke_token(self, token_id: str) -> dict[str, Any]:
        """End a token for good; what it has open ends within seconds. Twice is harmless."""
        return self._loop.run(self._inner.revoke_token(token_id))

    # ------------------------------------------------------------------ steps

    def _named(self, endpoint: Endpoint | str) -> tuple[EndpointInfo, CallOptions]:
        if isinstance(endpoint, str):
            return self._loop.run(self._inner.endpoint_info(*split_name(endpoint))), CallOptions()
        return endpoint.info, endpoint.call_options

    def _submit_call(self, info: EndpointInfo, params: Mapping[str, Any], options: CallOptions) -> Job:
        return self._face(self._loop.run(self._inner.submit_call(info, params, options)))

    def _face(self, inner: AsyncJob) -> Job:
        return Job(self._loop, inner, self)
