"""Pages about the server itself: health, services, status, signing in, the API's description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import Forbidden, Unauthorized
from dask_fleet.model.manifest import EndpointManifest, Manifest
from dask_fleet.server.auth import Scope, principal_of, require
from dask_fleet.server.docs_page import docs_page, signed_in_page, signin_page
from dask_fleet.server.documents import encode_document, rfc3339
from dask_fleet.server.methods import Methods
from dask_fleet.server.openapi import openapi_document
from dask_fleet.server.query import query_of
from dask_fleet.server.ranges import names_tag
from dask_fleet.server.routes_jobs import json_response
from dask_fleet.server.signin import CODE_VALID_S, SignIn, set_cookie_header

_MAX_CODE_CHARS = 100


def routes(
    controller: Controller, *, sign_in: SignIn, needs_agent: bool, figures: Callable[[], dict[str, Any]] | None = None
) -> list[BaseRoute]:
    """Return the routes of the server itself.

    Parameters
    ----------
    needs_agent
        Whether ``/readyz`` waits for an agent that has every service loaded.
    figures
        Tells what administrators see of the server's edge.
    """
    meta = _Meta(controller, sign_in, needs_agent=needs_agent, figures=figures)
    return [
        Route("/healthz", Methods(GET=meta.healthy)),
        Route("/readyz", Methods(GET=meta.ready)),
        Route("/signin", Methods(GET=meta.sign_in)),
        Route("/v1/signin", Methods(POST=meta.new_link)),
        Route("/v1/services", Methods(GET=meta.services)),
        Route("/v1/status", Methods(GET=meta.status)),
        Route("/openapi.json", Methods(GET=meta.openapi)),
        Route("/docs", Methods(GET=meta.docs)),
        Route("/", Methods(GET=meta.root)),
    ]


def services_document(manifest: Manifest) -> dict[str, Any]:
    """Return what ``GET /v1/services`` shows: all that SDK and CLI need to call endpoints."""
    return {
        "services": [
            {
                "name": service.name,
                "doc": service.doc,
                "version": service.version,
                "endpoints": [endpoint_document(service.name, endpoint) for endpoint in service.endpoints],
            }
            for service in manifest.services
        ]
    }


def endpoint_document(service: str, endpoint: EndpointManifest) -> dict[str, Any]:
    """Return what is shown of an endpoint."""
    return {
        "name": endpoint.name,
        "path": f"/v1/{service}/{endpoint.name}",
        "doc": endpoint.doc,
        "parameters": endpoint.parameters,
        "order": endpoint.order,
        "returns": endpoint.returns,
        "result_schema": endpoint.result_schema,
        "policy": endpoint.policy,
        "placement": endpoint.placement,
    }


class _Meta:
    def __init__(
        self, controller: Controller, sign_in: SignIn, *, needs_agent: bool, figures: Callable[[], dict[str, Any]] | None
    ) -> None:
        self._controller = controller
        self._sign_in = sign_in
        self._needs_agent = needs_agent
        self._figures = figures
        self._version = version("dask-fleet")
        # The manifest does not change while the server lives: both documents are made once, at their first request.
        self._services: _Fixed | None = None
        self._openapi: _Fixed | None = None

    async def healthy(self, _request: Request) -> Response:
        return PlainTextResponse("ok", headers=_WORD_HEADERS)

    async def ready(self, _request: Request) -> Response:
        why = self._controller.not_ready_because(needs_agent=self._needs_agent)
        if why is None:
            return PlainTextResponse("ready", headers=_WORD_HEADERS)
        return PlainTextResponse(f"not ready: {why}", status_code=503, headers={**_WORD_HEADERS, "Retry-After": "1"})

    async def root(self, request: Request) -> Response:
        principal_of(request)
        return Response(status_code=303, headers={"Location": "/docs"})

    async def sign_in(self, request: Request) -> Response:
        code = request.query_params.get("code", "")
        if request.method == "HEAD" or not 0 < len(code) <= _MAX_CODE_CHARS:
            # Link previews ask with HEAD: they must not use up the link.
            return signin_page(status_code=401)
        try:
            session = self._sign_in.redeem(code)
        except Unauthorized:
            return signin_page(status_code=401)
        if request.headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
            response = Response(status_code=303, headers={"Location": "/docs", "Cache-Control": "no-store"})
        else:
            response = signed_in_page()
        response.headers["Set-Cookie"] = set_cookie_header(session, secure=request.scope["scheme"] == "https")
        return response

    async def new_link(self, request: Request) -> Response:
        principal = principal_of(request)
        if principal.via != "token":
            raise Forbidden("a new sign-in link needs a token: a session must not make further sessions")
        require(principal, Scope.READ)
        query_of(request, ())
        # The Host header has passed the allow-list, so this is a name under which the caller reaches us.
        base = f"{request.scope['scheme']}://{request.headers['host']}"
        link = f"{base}/signin?code={self._sign_in.new_code(principal)}"
        return json_response({"url": link, "valid_s": CODE_VALID_S}, status_code=201)

    async def services(self, request: Request) -> Response:
        require(principal_of(request), Scope.READ)
        query_of(request, ())
        if self._services is None:
            self._services = _Fixed(encode_document(services_document(self._controller.manifest)))
        return self._services.answer(request)

    async def status(self, request: Request) -> Response:
        principal = principal_of(request)
        require(principal, Scope.READ)
        query_of(request, ())
        status = self._controller.status(tenant=principal.tenant)
        status["paused"] = [{**each, "until": rfc3339(each.pop("until_us"))} for each in status["paused"]]
        if self._figures is not None and Scope.ADMIN in principal.scopes:
            status["edge"] = self._figures()
        return json_response({"version": self._version, **status})

    async def openapi(self, request: Request) -> Response:
        require(principal_of(request), Scope.READ)
        if self._openapi is None:
            document = openapi_document(self._controller.manifest, version=self._version)
            self._openapi = _Fixed(encode_document(document))
        return self._openapi.answer(request)

    async def docs(self, request: Request) -> Response:
        require(principal_of(request), Scope.READ)
        return docs_page(self._controller.manifest, version=self._version)


class _Fixed:
    """A document that stays the same, so that whoever has it need not fetch it again."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        headers = {"ETag": self._etag, "Cache-Control": "private, no-cache"}
        if names_tag(request.headers.get("if-none-match", ""), self._etag, weakly=True):
            return Response(status_code=304, headers=headers)
        return Response(self._body, media_type="application/json", headers=headers)


_WORD_HEADERS = {"Cache-Control": "no-store"}
