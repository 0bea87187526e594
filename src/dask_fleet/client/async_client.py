"""The asynchronous client: services, calls and jobs, and by its bases clusters and tokens. The synchronous one runs it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from dask_fleet.client.async_clusters import AsyncClusters
from dask_fleet.client.async_job import AsyncJob, Report
from dask_fleet.client.async_tokens import AsyncTokens
from dask_fleet.client.batch import submit_sets
from dask_fleet.client.catalogue import Catalogue, EndpointInfo
from dask_fleet.client.endpoints import AsyncEndpoint, AsyncServiceNames, item_params, split_name
from dask_fleet.client.fan_out import bounded_map, in_completion_order
from dask_fleet.client.options import CallOptions, encode_params, time_text
from dask_fleet.client.retries import RetryPolicy
from dask_fleet.client.transport import Transport
from dask_fleet.config import Secret, load_client_here
from dask_fleet.config.trust import Trust
from dask_fleet.model.errors import FleetError
from dask_fleet.model.states import RunState

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_PATIENCE_S = 30.0
PAGE_SIZE = 100


class AsyncClient(AsyncClusters, AsyncTokens):
    """A connection to a Fleet server, for ``async`` code.

    Parameters
    ----------
    url
        The server. Else ``FLEET_URL``, ``fleet.yaml``, or the server that runs from this folder.
    token
        Else ``FLEET_TOKEN``, ``FLEET_TOKEN_FILE``, or that server's token file.
    timeout_s
        Longest silence of the server in one request. Waiting for a job is not silence.
    patience_s
        How long requests are repeated while the server restarts, is full, or the network fails.
    ca_file
        Certificates of the authorities that vouch for an ``https`` server. Else ``FLEET_CA_FILE``, or those of this machine.
    fingerprint
        ``sha256:…`` of the server's key, which is then all that counts. Else ``FLEET_FINGERPRINT``, or that of the server
        that runs from this folder.
    transport
        Another way to the server than the network (tests: ``httpx.ASGITransport``).

    Examples
    --------
    ::

        async with AsyncClient() as client:
            job = await client.flights.delay_by_carrier(month=1)
            table = await job.result()
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
        given = {"url": url, "token": token, "ca_file": ca_file, "fingerprint": fingerprint}
        settings = load_client_here(given).settings
        self.url = settings.url
        self._catalogue: Catalogue | None = None
        self._transport = Transport(
            settings.url,
            settings.token,
            timeout_s=timeout_s,
            retry=RetryPolicy(patience_s=patience_s),
            trust=Trust(ca_file=settings.ca_file, fingerprint=settings.fingerprint),
            http=transport,
        )

    # ------------------------------------------------------------------ life

    async def aclose(self) -> None:
        """Close all connections. Jobs go on. Twice is harmless."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------ what there is

    async def services(self, *, refresh: bool = False) -> Catalogue:
        """Return what the server offers; asked once, and again with `refresh`."""
        if self._catalogue is None or refresh:
            self._catalogue = Catalogue.from_document(await self._transport.json("GET", "/v1/services"))
        return self._catalogue

    @property
    def known_services(self) -> Catalogue | None:
        """What `services` last said, without asking."""
        return self._catalogue

    async def endpoint_info(self, service: str, endpoint: str) -> EndpointInfo:
        """Return what the server says of an endpoint.

        Raises
        ------
        AttributeError
            If there is none; the message lists what there is.
        """
        found = (await self.services()).find(service, endpoint)
        if found is None:  # the server may have got new code since it was asked
            found = (await self.services(refresh=True)).service(service).endpoint(endpoint)
        return found

    def service(self, name: str) -> AsyncServiceNames:
        """Return a service by name; also one whose name is that of a method here."""
        info = self._catalogue.services.get(name) if self._catalogue is not None else None
        return AsyncServiceNames(self, name, info)

    def __getattr__(self, name: str) -> AsyncServiceNames:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.service(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(self._catalogue.services if self._catalogue is not None else ())})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    # ------------------------------------------------------------------ calls

    async def submit(
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
    ) -> AsyncJob:
        """Submit a call by names and return its job: the same job for the same request.

        Parameters
        ----------
        service, endpoint, params
            What to call, and its parameters by name.
        wait
            Seconds (at most 60) the server may hold its answer until the job is done.
        priority
            -100 to 100, higher first.
        deadline
            The job expires if it has not started by then: seconds from now, or a time with its zone.
        tags
            Words to find the job by.
        refresh
            Compute again even if a result is there; the old one is served meanwhile.
        idempotency_key
            Makes repeated submissions one, also of an endpoint that is not pure.

        Raises
        ------
        InvalidParameters
            If they do not fit; ``extra["errors"]`` names each field.
        NotFound
            If there is no such endpoint.
        """
        catalogue = await self.services()
        info = catalogue.find(service, endpoint)
        options = CallOptions().changed(
            wait=wait, priority=priority, deadline=deadline, tags=tags, refresh=refresh, idempotency_key=idempotency_key
        )
        if info is None:
            info = (await self.services(refresh=True)).find(service, endpoint)
        # One that is not listed is sent all the same: the server's answer says what is wrong with it.
        pure = info.pure if info is not None else True
        return await self._post(service, endpoint, params or {}, options, pure=pure)

    async def submit_call(self, info: EndpointInfo, params: Mapping[str, Any], options: CallOptions) -> AsyncJob:
        """Submit a call of a known endpoint."""
        return await self._post(info.service, info.name, params, options, pure=info.pure)

    async def map(self, endpoint: AsyncEndpoint | str, items: Iterable[Any], **common: Any) -> list[AsyncJob]:
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
        if isinstance(endpoint, str):
            endpoint = AsyncEndpoint(self, *split_name(endpoint), CallOptions())
        info = await self.endpoint_info(endpoint.service, endpoint.name)
        return await self.map_calls(info, items, common, endpoint.call_options)

    async def submit_batch(
        self, endpoint: AsyncEndpoint | str, items: Iterable[Any], **common: Any
    ) -> list[AsyncJob | FleetError]:
        """Do what `map` does, but return, in place of its job, why an item was refused."""
        if isinstance(endpoint, str):
            endpoint = AsyncEndpoint(self, *split_name(endpoint), CallOptions())
        info = await self.endpoint_info(endpoint.service, endpoint.name)
        return await self.batch_calls(info, items, common, endpoint.call_options)

    async def map_calls(
        self, info: EndpointInfo, items: Iterable[Any], common: Mapping[str, Any], options: CallOptions
    ) -> list[AsyncJob]:
        """Do the work of `map` for a known endpoint."""

        async def submit(item: Any) -> AsyncJob:
            return await self.submit_call(info, item_params(info, item, common), options)

        if options.wait_s:  # a batch waits for nobody
            return await bounded_map(submit, items)
        sets = (item_params(info, item, common) for item in items)
        answers = await submit_sets(self._transport, info, sets, options, raise_refusals=True)
        return [answer for answer in answers if isinstance(answer, AsyncJob)]

    async def batch_calls(
        self, info: EndpointInfo, items: Iterable[Any], common: Mapping[str, Any], options: CallOptions
    ) -> list[AsyncJob | FleetError]:
        """Do the work of `submit_batch` for a known endpoint."""
        sets = (item_params(info, item, common) for item in items)
        return await submit_sets(self._transport, info, sets, options, raise_refusals=False)

    async def gather(self, jobs: Iterable[AsyncJob], *, progress: bool = False) -> list[Any]:
        """Return the results of `jobs` in their order; the first job without a result raises.

        Parameters
        ----------
        jobs
            What to wait for.
        progress
            Whether to show a progress bar.
        """
        if progress:
            from dask_fleet.client.bars import open_bar

            with open_bar("jobs") as bar:
                return await self.reported_gather(jobs, bar.update)
        return await self.reported_gather(jobs, lambda _done, _total, _text: None)

    async def reported_gather(self, jobs: Iterable[AsyncJob], report: Report) -> list[Any]:
        """Return `gather`, telling `report` how many jobs are done."""
        held = list(jobs)
        done = 0
        report(0, len(held), "")
        async for job in in_completion_order(held, AsyncJob.poll):
            if job.status is not RunState.SUCCEEDED:
                await job.result()  # raises what the job has to say
            done += 1
            report(done, len(held), "")
        return await bounded_map(AsyncJob.result, held, limit=8)

    # ------------------------------------------------------------------ jobs

    async def job(self, job_id: str) -> AsyncJob:
        """Return a job by its id.

        Raises
        ------
        NotFound
            If there is none, or it is another tenant's.
        """
        return AsyncJob(self._transport, await self._transport.json("GET", f"/v1/jobs/{quote(job_id, safe='')}"))

    async def jobs(
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
    ) -> AsyncIterator[AsyncJob]:
        """Yield jobs, newest first, page by page as they are asked for.

        Parameters
        ----------
        state, service, user, tag
            Only jobs with these.
        endpoint
            ``"flights.delay_by_carrier"``, or the name alone together with `service`.
        created_after, created_before
            Only jobs first asked for between these times (with their zone).
        limit
            Stop after so many.
        """
        if endpoint is not None and service is None:
            service, endpoint = split_name(endpoint)
        query = {
            "status": str(state) if state is not None else None,
            "service": service,
            "endpoint": endpoint,
            "user": user,
            "tag": tag,
            "created_after": time_text(created_after) if created_after is not None else None,
            "created_before": time_text(created_before) if created_before is not None else None,
        }
        asked = {name: value for name, value in query.items() if value is not None}
        cursor: str | None = None
        given = 0
        while limit is None or given < limit:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - given)
            page = {**asked, "limit": str(size), **({"cursor": cursor} if cursor else {})}
            document = await self._transport.json("GET", "/v1/jobs", query=page)
            for job in document["jobs"]:
                if limit is not None and given >= limit:
                    return
                given += 1
                yield AsyncJob(self._transport, job)
            cursor = document.get("next_cursor")
            if not cursor:
                return

    async def status(self) -> dict[str, Any]:
        """Return what the server says of itself: version, queued and running jobs, agents."""
        return await self._transport.json("GET", "/v1/status")

    # ------------------------------------------------------------------ steps

    async def _post(
        self, service: str, endpoint: str, params: Mapping[str, Any], options: CallOptions, *, pure: bool
    ) -> AsyncJob:
        if options.idempotency_key is None and (not pure or options.refresh):
            # The request may be repeated after a broken connection: that must not open a second job or run.
            options = options.changed(idempotency_key=str(uuid.uuid4()))
        document = await self._transport.json(
            "POST",
            f"/v1/{quote(service, safe='')}/{quote(endpoint, safe='')}",
            query={"refresh": "true"} if options.refresh else None,
            headers={"Content-Type": "application/json", **options.headers()},
            content=encode_params(params),
            wait_s=options.wait_s,
        )
        return AsyncJob(self._transport, document)
