"""The ASGI application: who is let in, and which part answers. The hot path goes past the router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import BadRequest, FleetError, MethodNotAllowed, NotFound, Unauthorized
from dask_fleet.server.agents import AGENTS_PATH, serve_agent
from dask_fleet.server.auth import Principal, Scope, TokenAuthenticator, refuse_token_in_url, require, unauthorized
from dask_fleet.server.body import ClientDisconnectedError
from dask_fleet.server.docs_page import signin_page
from dask_fleet.server.hosts import HostCheck
from dask_fleet.server.live import LiveRequests
from dask_fleet.server.problems import internal_problem, problem_bytes, problem_headers
from dask_fleet.server.signin import SignIn
from dask_fleet.server.submit import Submission
from dask_fleet.server.submit_batch import BATCH_SUFFIX, BatchSubmission, batch_gate

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/signin"})
"""What needs no token: a word each for load balancers, and the one-time link. Everything else does."""

PAGES = frozenset({"/", "/docs"})
"""What people open in a browser: without a session they are told how to sign in, not sent a problem document."""

_POLICY_VIOLATION = 1008  # close code of RFC 6455

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class FleetApp:
    """Admits a request, then hands it on: calls to `Submission`, agents to their session, the rest to the router."""

    def __init__(
        self,
        controller: Controller,
        *,
        routes: Sequence[BaseRoute],
        tokens: TokenAuthenticator,
        sign_in: SignIn,
        hosts: HostCheck,
        live: LiveRequests | None = None,
    ) -> None:
        self._controller = controller
        self._tokens = tokens
        self._sign_in = sign_in
        self._hosts = hosts
        self._live = LiveRequests() if live is None else live
        self._router: ASGIApp = Router(routes, redirect_slashes=False, default=self._unknown)
        self._submissions: dict[str, Submission | BatchSubmission] = {}
        gate = batch_gate()
        for service in controller.manifest.services:
            for endpoint in service.endpoints:
                path = f"/v1/{service.name}/{endpoint.name}"
                single = self._submissions[path] = Submission(controller, service, endpoint)
                self._submissions[path + BATCH_SUFFIX] = BatchSubmission(controller, single, gate)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection or request of ASGI."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await self._websocket(scope, receive, send)

    # ------------------------------------------------------------------ http

    async def _http(self, scope: Any, receive: Receive, send: Send) -> None:
        started = _Started(send)
        task = asyncio.current_task()
        assert task is not None
        try:
            self._hosts.check(scope)
            path: str = scope["path"]
            if path not in OPEN_PATHS:
                if scope["query_string"]:
                    refuse_token_in_url(scope["query_string"])
                principal = self._authenticate(scope)
                self._live.tasks[task] = principal.token_id
                submission = self._submissions.get(path)
                if submission is not None:
                    await self._submit(submission, scope, receive, started, principal)
                    return
                scope.setdefault("state", {})["principal"] = principal
            await self._router(scope, receive, started)
        except ClientDisconnectedError:
            return
        except asyncio.CancelledError:
            if not self._live.was_ended(task):
                raise
            await started.cut(scope)
        except Exception as exc:  # the edge: whatever was not foreseen becomes a 500 with an id
            if started.yes:
                log.exception("failed while answering", extra={"action": "answer_broken"})
                raise
            await _answer_error(exc, scope, send)
        finally:
            self._live.forget(task)

    async def _submit(
        self, submission: Submission | BatchSubmission, scope: Any, receive: Receive, started: _Started, principal: Principal
    ) -> None:
        send = started.send
        if scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", b"OPTIONS, POST")]})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed("call an endpoint with POST", allow=["OPTIONS", "POST"])
        status, headers, body = await submission(scope, receive, principal)
        started.yes = True
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _authenticate(self, scope: Any) -> Principal:
        bearer: bytes | None = None
        cookie = False
        for name, value in scope["headers"]:
            if name == b"authorization":
                if bearer is not None:
                    raise BadRequest("the request has more than one Authorization header")
                bearer = value
            elif name == b"cookie":
                cookie = True
        if bearer is not None:
            return self._tokens.authenticate_bearer(bearer)
        if cookie:
            principal = self._sign_in.authenticate_cookie(scope)
            if principal is not None:
                return principal
        self._tokens.refused["missing"] += 1
        raise unauthorized()

    async def _unknown(self, scope: Any, _receive: Any, _send: Any) -> None:
        """Answer what no route takes, naming what there is instead: the usual cause is a typing error."""
        _, _, path = str(scope["path"]).partition("/v1/")
        name, _, endpoint = path.partition("/")
        services = {service.name: service for service in self._controller.manifest.services}
        if name in services and endpoint:
            known = ", ".join(each.name for each in services[name].endpoints)
            raise NotFound(f"service {name!r} has no endpoint {endpoint[:80]!r}; it has: {known}")
        if scope["method"] == "POST" and endpoint:
            raise NotFound(f"no service {name[:80]!r} is served here; there is: {', '.join(services)}")
        raise NotFound("no such page")

    # ------------------------------------------------------------------ websocket

    async def _websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        try:
            self._hosts.check(scope)
            if scope["path"] != AGENTS_PATH:
                raise NotFound("no such page")
            bearer = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(bearer) != 1:
                raise unauthorized()  # agents carry a token; a browser's cookie opens no websocket here
            principal = self._tokens.authenticate_bearer(bearer[0])
            require(principal, Scope.AGENT)
        except FleetError as exc:
            await receive()
            body = problem_bytes(exc)
            headers = problem_headers(exc, len(body))
            await send({"type": "websocket.http.response.start", "status": exc.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": body})
            return
        task = asyncio.current_task()
        assert task is not None
        self._live.tasks[task] = principal.token_id
        try:
            await serve_agent(self._controller, receive, send)
        except asyncio.CancelledError:
            if not self._live.was_ended(task):
                raise
            log.warning("agent's token has ended", extra={"action": "agent_token_ended", "token_id": principal.token_id})
            with contextlib.suppress(RuntimeError, OSError):  # the agent may have gone meanwhile
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "the token has ended"})
        finally:
            self._live.forget(task)


class _Started:
    """Remembers whether the answer's head has gone out: after that no error document can be sent."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self._is_events = False
        self.yes = False

    async def __call__(self, message: Any) -> None:
        if not self.yes:
            self.yes = True
            self._is_events = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
        await self.send(message)

    async def cut(self, scope: Any) -> None:
        """The token has ended meanwhile: say so if nothing was said yet, else say no more.

        An event stream has no length, so it can end in good order; what has one is broken off, as half an answer must not
        look like a whole one.
        """
        if not self.yes:
            await _answer_error(unauthorized(), scope, self.send)
        elif self._is_events:
            with contextlib.suppress(RuntimeError, OSError):  # the client may have gone meanwhile
                await self.send({"type": "http.response.body", "body": b": the token has ended\n\n"})


async def _answer_error(exc: Exception, scope: Any, send: Send) -> None:
    instance: str | None = None
    if isinstance(exc, HTTPException):
        error: FleetError = _of_router(exc)
    elif isinstance(exc, FleetError):
        error = exc
        if exc.status >= 500 and not exc.retryable:
            log.error("request failed", exc_info=exc, extra={"action": "request_failed", "code": exc.code})
    else:
        error, instance = internal_problem(exc, path=scope["path"])
    if isinstance(error, Unauthorized) and scope["path"] in PAGES:
        page = signin_page(status_code=error.status)
        body, headers = bytes(page.body), page.raw_headers
    else:
        body = problem_bytes(error, instance=instance)
        headers = problem_headers(error, len(body))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _of_router(exc: HTTPException) -> FleetError:
    """Say what the router says in the words of our one error tree."""
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        return MethodNotAllowed(allow=[name.strip() for name in allow.split(",") if name.strip()])
    if exc.status_code == 404:
        return NotFound("no such page")
    return BadRequest(exc.detail)
