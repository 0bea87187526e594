"""``POST /v1/{service}/{endpoint}``: the hot path, on bare ASGI so that a call costs little more than its commit."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from dask_fleet.controller.controller import Controller
from dask_fleet.model.ids import job_id
from dask_fleet.model.jobs import JobRecord, NewRun
from dask_fleet.model.manifest import EndpointManifest, ServiceManifest
from dask_fleet.model.states import RunState
from dask_fleet.server.auth import Principal, Scope, require
from dask_fleet.server.body import read_decoded
from dask_fleet.server.documents import encode_document, job_document
from dask_fleet.server.options import CallOptions, Headers, parse_options
from dask_fleet.services.requests import RequestValidator


class Submission:
    """One endpoint, ready to be called: its validator compiled, its constant parts at hand."""

    def __init__(self, controller: Controller, service: ServiceManifest, endpoint: EndpointManifest) -> None:
        self._controller = controller
        self._service = service.name
        self._version = service.version
        self._endpoint = endpoint.name
        self._policy = endpoint.policy
        self.validator = RequestValidator(endpoint)

    async def __call__(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        principal: Principal,
    ) -> tuple[int, Headers, bytes]:
        """Answer a call: status, headers and body.

        Raises
        ------
        FleetError
            The refusal; nothing is stored then.
        """
        require(principal, Scope.SUBMIT)
        headers: Headers = scope["headers"]
        options = parse_options(headers, scope["query_string"], now_us=self._controller.clock.now_us())
        params = await read_decoded(scope, receive, self.validator.canonical, user=(principal.tenant, principal.user))
        name = self.name_of(params, principal, options.idempotency_key)
        if not options.refresh and options.idempotency_key is None and not options.tags:
            entry = self._controller.cached(name)
            if entry is not None:
                if entry.document is None:
                    entry.document = encode_document(job_document(self._controller, entry.job, result=entry.result))
                return 200, _answer_headers(name, entry.document, options), entry.document
        new = self.request(name, params, principal, options, options.idempotency_key)
        accepted = await self._controller.intake.submit(new)
        job, result = accepted.job, None
        if not job.state.is_terminal and not options.refresh:
            # Somebody is refreshing: whoever did not ask for that is served the result there is.
            result = await self._controller.result(job)
        if result is None:
            job = await self._settled(job, options)
            if job.state is RunState.SUCCEEDED:
                result = await self._controller.result(job)
        body = encode_document(job_document(self._controller, job, result=result))
        if job.state.is_terminal or result is not None:
            return 200, _answer_headers(job.job_id, body, options), body
        return 202, [*_answer_headers(job.job_id, body, options), (b"retry-after", b"1")], body

    def name_of(self, params: bytes, principal: Principal, key: str | None) -> str:
        """Return the id of the job that canonical parameters ask for."""
        nonce = ""
        if not self._policy.pure:
            # With a key the id is made of it: a repeated request names the same job even before the key is looked up.
            nonce = f"{principal.user}\0{key}" if key else secrets.token_hex(16)
        return job_id(
            tenant=principal.tenant,
            service=self._service,
            endpoint=self._endpoint,
            version=self._version,
            params=params,
            nonce=nonce,
        )

    def request(self, name: str, params: bytes, principal: Principal, options: CallOptions, key: str | None) -> NewRun:
        """Return what the controller is asked for."""
        return NewRun(
            job_id=name,
            tenant=principal.tenant,
            service=self._service,
            endpoint=self._endpoint,
            version=self._version,
            params=params,
            user=principal.user,
            policy=self._policy,
            priority=options.priority,
            deadline_us=options.deadline_us,
            tags=options.tags,
            refresh=options.refresh,
            idempotency_key=key,
            request_digest=self._request_digest(params) if key else b"",
        )

    async def _settled(self, job: JobRecord, options: CallOptions) -> JobRecord:
        if options.wait_s > 0 and not job.state.is_terminal:
            return await self._controller.wait(job, options.wait_s)
        return job

    def _request_digest(self, params: bytes) -> bytes:
        digest = hashlib.sha256(f"{self._service}\0{self._endpoint}\0".encode())
        digest.update(params)
        return digest.digest()


def _answer_headers(name: str, body: bytes, options: CallOptions) -> Headers:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"location", b"/v1/jobs/" + name.encode("ascii")),
        (b"cache-control", b"no-store"),
    ]
    if options.preference_applied is not None:
        headers.append((b"preference-applied", options.preference_applied))
    return headers
