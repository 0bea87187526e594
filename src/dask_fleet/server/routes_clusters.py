"""``/v1/clusters``: take a Dask cluster, look at it, change its size, join it, give it back.

A cluster runs whatever its client sends, so everything but looking needs the scope ``run_code`` and is for whose it is, for
whom its user has let in, and for administrators.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.clusters import ClusterAccess, ClusterRecord
from dask_fleet.model.errors import BadRequest, ClusterFailed, Conflict, Forbidden, NotFound
from dask_fleet.server.auth import Principal, Scope, principal_of, require
from dask_fleet.server.body import read_body
from dask_fleet.server.body_budget import SMALL_BODY_BYTES
from dask_fleet.server.cluster_body import ClusterRequest, parse_create, parse_csr, parse_scale
from dask_fleet.server.cluster_documents import cluster_document, cluster_event_document
from dask_fleet.server.dask_versions import refuse_mismatch, versions_here
from dask_fleet.server.methods import Methods
from dask_fleet.server.options import parse_options
from dask_fleet.server.query import query_of, wait_s
from dask_fleet.server.routes_jobs import json_response

POLL_AFTER_S = 1


def routes(controller: Controller) -> list[BaseRoute]:
    """Return the routes of clusters."""
    clusters = _Clusters(controller)
    return [
        Route("/v1/clusters", Methods(GET=clusters.list, POST=clusters.create)),
        Route("/v1/clusters/{name}/certificate", Methods(POST=clusters.sign)),
        Route("/v1/clusters/{name}/events", Methods(GET=clusters.events)),
        Route("/v1/clusters/{name}", Methods(GET=clusters.show, PATCH=clusters.scale, DELETE=clusters.close)),
    ]


class _Clusters:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def create(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.RUN_CODE)
        query_of(request, ())
        options = parse_options(request.scope["headers"], b"", now_us=self._controller.clock.now_us())
        body = await read_body(request.scope, request.receive, limit=SMALL_BODY_BYTES)
        asked = parse_create(body, principal, idempotency_key=options.idempotency_key)
        refuse_mismatch(asked.versions, versions_here())
        record = await self._begin(asked)
        if options.wait_s > 0:
            record = await self._controller.clusters.wait(record.cluster_id, options.wait_s, workers=True)
        if record.state is ClusterState.FAILED:
            raise ClusterFailed(
                f"the cluster could not be had: {record.reason}", cluster_id=record.cluster_id, name=record.name
            )
        document = {**self._document(record), "versions": versions_here()}
        if asked.csr is not None and record.state is ClusterState.RUNNING:
            document["certificate"] = await self._signed(record, asked.csr)
        headers = {"Location": f"/v1/clusters/{record.cluster_id}"}
        if options.preference_applied is not None:
            headers["Preference-Applied"] = options.preference_applied.decode()
        if record.state is ClusterState.RUNNING:
            return json_response(document, status_code=201, headers=headers)
        return json_response(document, status_code=202, headers={**headers, "Retry-After": str(POLL_AFTER_S)})

    async def _begin(self, asked: ClusterRequest) -> ClusterRecord:
        """Make the cluster; a repeated request finds the one that it made before."""
        clusters, new = self._controller.clusters, asked.new
        try:
            return await clusters.create(new, asked.csr)
        except Conflict:
            try:
                known = await clusters.find(new.tenant, new.cluster_id)
            except NotFound:
                known = None
            if known is None:
                raise
            return known

    async def list(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query = query_of(request, {"all", "spares"})
        living, spares = not _flag(query, "all"), _flag(query, "spares")
        found = await self._controller.clusters.list(principal.tenant, living=living, spares=spares)
        return json_response({"clusters": [self._document(record) for record in found]})

    async def show(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query = query_of(request, {"wait", "workers"})
        seconds, workers = wait_s(query), _flag(query, "workers")
        record = await self._find(request, principal)
        if seconds and (workers or record.state in {ClusterState.PENDING, ClusterState.STARTING}):
            record = await self._controller.clusters.wait(record.cluster_id, seconds, workers=workers)
        return json_response(self._document(record))

    async def scale(self, request: Request) -> Response:
        record = await self._own(request)
        n_workers, leave = parse_scale(await read_body(request.scope, request.receive, limit=SMALL_BODY_BYTES))
        record = await self._controller.clusters.scale(record.cluster_id, n_workers, leave=leave)
        return json_response(self._document(record))

    async def close(self, request: Request) -> Response:
        record = await self._own(request)
        if not record.state.is_terminal:
            record = await self._controller.clusters.close(record.cluster_id, f"closed by {principal_of(request).user}")
        seconds = parse_options(request.scope["headers"], b"", now_us=self._controller.clock.now_us()).wait_s
        if seconds and not record.state.is_terminal:
            record = await self._controller.clusters.wait_closed(record.cluster_id, seconds)
        # Closing takes its time where tasks do not end: 202 says that the wish is recorded.
        return json_response(self._document(record), status_code=200 if record.state.is_terminal else 202)

    async def sign(self, request: Request) -> Response:
        record = await self._own(request)
        csr, versions = parse_csr(await read_body(request.scope, request.receive, limit=SMALL_BODY_BYTES))
        refuse_mismatch(versions, versions_here())
        certificate = await self._signed(record, csr)
        return json_response({**self._document(record), "certificate": certificate, "versions": versions_here()})

    async def events(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query_of(request, ())
        record = await self._find(request, principal)
        found = await self._controller.clusters.events(record)
        return json_response(
            {
                "cluster_id": record.cluster_id,
                "name": record.name,
                "status": record.state.value,
                "events": [cluster_event_document(event) for event in found],
            }
        )

    # ------------------------------------------------------------------ steps

    async def _own(self, request: Request) -> ClusterRecord:
        """Return the cluster that the caller is about to use or change."""
        principal = principal_of(request)
        require(principal, Scope.RUN_CODE)
        query_of(request, ())
        record = await self._find(request, principal)
        _check_access(record, principal)
        return record

    async def _find(self, request: Request, principal: Principal) -> ClusterRecord:
        return await self._controller.clusters.find(principal.tenant, request.path_params["name"])

    async def _signed(self, record: ClusterRecord, csr: bytes) -> str:
        certificate, _ = await self._controller.clusters.sign(record.cluster_id, csr)
        return certificate.decode("ascii")

    def _document(self, record: ClusterRecord) -> dict[str, Any]:
        view = None if record.state.is_terminal else self._controller.clusters.status(record)
        return cluster_document(record, view)


def _check_access(record: ClusterRecord, principal: Principal) -> None:
    """Check that a cluster of the caller's tenant is one that the caller may use.

    Raises
    ------
    Forbidden
        If it is another user's.
    """
    if record.user == principal.user or record.spec.access is ClusterAccess.TENANT or Scope.ADMIN in principal.scopes:
        return
    raise Forbidden(
        f"the cluster {record.name} is {record.user}'s: only {record.user} and administrators may use, scale or close it."
        f" Take one of your own, or ask {record.user} to take one with access='tenant'",
        user=record.user,
    )


def _flag(query: dict[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in {"true", "false"}:
        raise BadRequest(f"the query parameter {name} must be true or false")
    return value == "true"
