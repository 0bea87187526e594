"""``POST /v1/{service}/{endpoint}:batch``: thousands of parameter sets in one request, answered one by one."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import BodyTooLarge, CapacityError, FleetError
from dask_fleet.model.jobs import Accepted, JobRecord, NewRun
from dask_fleet.server.auth import Principal, Scope, require
from dask_fleet.server.batch_body import MAX_BATCH_BYTES, elements_of, lines_of
from dask_fleet.server.body import JSON, LARGE_BODIES, MAX_BODY_BYTES, NDJSON, base_type, decoded, read_into
from dask_fleet.server.fair_gate import FairGate
from dask_fleet.server.options import CallOptions, Headers, parse_options
from dask_fleet.server.pacing import Pacer
from dask_fleet.server.problems import encode_problem, problem_document
from dask_fleet.server.submit import Submission

BATCH_SUFFIX = ":batch"
BATCHES_AT_ONCE = 4
"""Batches accepted at the same time, once their bodies are here. The next ones wait in line, user by user."""
BATCHES_OF_A_USER = 2
SETS_A_TRANSACTION = 200
"""What another caller's write waits for. Five hundred, the ledger's most, made it wait three times as long and the batch no
faster; one hundred took a third more processor time in commits."""
MAX_FIELD_ERRORS = 10
"""Of one parameter set: ten thousand sets with a hundred wrong fields each would be an answer of a hundred megabytes."""

GATE_TIMEOUT_S = 30.0
"""How long a batch waits for its turn."""
_MEDIA_TYPES = frozenset({JSON}) | NDJSON


class BatchEntry(msgspec.Struct, kw_only=True):
    """What is said of a parameter set that was accepted."""

    index: int
    job_id: str
    status: str
    location: str


_encode = msgspec.json.Encoder().encode


class BatchSubmission:
    """One endpoint, ready to be called with many parameter sets.

    Parameters
    ----------
    controller
        Who accepts.
    single
        The same endpoint for one call: its validator, its names.
    gate
        Shared by all endpoints of a server (`batch_gate`).
    """

    def __init__(self, controller: Controller, single: Submission, gate: FairGate) -> None:
        self._controller = controller
        self._single = single
        self._gate = gate

    async def __call__(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        principal: Principal,
    ) -> tuple[int, Headers, bytes]:
        """Answer a batch: status, headers and body. All that the answer calls accepted is durable.

        Raises
        ------
        FleetError
            The refusal of the whole; nothing is stored then.
        """
        require(principal, Scope.SUBMIT)
        headers: Headers = scope["headers"]
        options = parse_options(headers, scope["query_string"], now_us=self._controller.clock.now_us())
        user = (principal.tenant, principal.user)
        # The body first: whoever is slow to send one keeps nobody from the gate. It has its share of memory until the end.
        async with LARGE_BODIES.reserve(user) as place:
            body = await read_into(place, scope, receive, limit=MAX_BATCH_BYTES, media_types=_MEDIA_TYPES)
            async with self._gate.place(user):
                pacer = Pacer()
                is_array = base_type(next((value for name, value in headers if name == b"content-type"), None)) == JSON
                texts = await elements_of(body, pacer) if is_array else lines_of(body)
                del body
                return await _Batch(self._controller, self._single, principal, options, pacer).answer(texts)


def batch_gate() -> FairGate:
    """Return the gate for the batches of a server: `BATCHES_AT_ONCE` places, at most `BATCHES_OF_A_USER` for each user."""
    return FairGate(
        BATCHES_AT_ONCE,
        per_user=BATCHES_OF_A_USER,
        patience_s=GATE_TIMEOUT_S,
        refusal="other batches are being accepted: send this one again",
    )


class _Batch:
    """One batch on its way."""

    def __init__(
        self, controller: Controller, single: Submission, principal: Principal, options: CallOptions, pacer: Pacer
    ) -> None:
        self._controller = controller
        self._single = single
        self._principal = principal
        self._user = (principal.tenant, principal.user)
        self._options = options
        self._pacer = pacer
        self._cacheable = not options.refresh and options.idempotency_key is None and not options.tags
        self._entries: dict[int, bytes] = {}
        self._accepted = 0
        self._unfinished = False
        self._out_of_room: FleetError | None = None
        """The first refusal for want of room, of the medium or because of the server's end."""
        self._refused_for_good = 0
        self._asked: list[tuple[int, NewRun]] = []
        """Ready to be accepted in the next transaction."""

    async def answer(self, texts: list[bytes]) -> tuple[int, Headers, bytes]:
        count = len(texts)
        texts.reverse()  # each is let go when it has been looked at
        for index in range(count):
            await self._take(index, texts.pop())
            if len(self._asked) == SETS_A_TRANSACTION:
                await self._accept()
            await self._pacer.rest()
        await self._accept()
        if self._out_of_room is not None and not self._accepted and not self._refused_for_good:
            raise self._out_of_room
        return self._document(count)

    async def _take(self, index: int, text: bytes) -> None:
        try:
            if len(text) > MAX_BODY_BYTES:
                raise BodyTooLarge(f"the parameter set is larger than {MAX_BODY_BYTES} bytes", limit=MAX_BODY_BYTES)
            params = await decoded(text, self._single.validator.canonical, self._user)
        except FleetError as exc:
            self._refuse(index, exc)
            return
        options = self._options
        # A space cannot be in a key: no key of a single call is the same.
        key = None if options.idempotency_key is None else f"{options.idempotency_key} {index}"
        name = self._single.name_of(params, self._principal, key)
        known = self._controller.cached(name) if self._cacheable else None
        if known is not None:
            self._enter(index, known.job)
        else:
            self._asked.append((index, self._single.request(name, params, self._principal, options, key)))

    async def _accept(self) -> None:
        asked, self._asked = self._asked, []
        if not asked:
            return
        answers: list[Accepted | FleetError]
        try:
            answers = await self._controller.intake.submit_many([new for _, new in asked])
        except CapacityError as exc:
            answers = [exc] * len(asked)
        for (index, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Accepted):
                self._enter(index, answer.job)
            else:
                self._refuse(index, answer)

    def _enter(self, index: int, job: JobRecord) -> None:
        self._accepted += 1
        self._unfinished = self._unfinished or not job.state.is_terminal
        entry = BatchEntry(index=index, job_id=job.job_id, status=job.state.value, location=f"/v1/jobs/{job.job_id}")
        self._entries[index] = _encode(entry)

    def _refuse(self, index: int, error: FleetError) -> None:
        if not error.retryable:
            self._refused_for_good += 1
        elif self._out_of_room is None:
            self._out_of_room = error
        document = problem_document(error)
        if "errors" in document:
            document["errors"] = document["errors"][:MAX_FIELD_ERRORS]
        self._entries[index] = encode_problem({"index": index, "error": document})

    def _document(self, count: int) -> tuple[int, Headers, bytes]:
        items = b",".join([self._entries[index] for index in range(count)])
        body = b'{"accepted":%d,"refused":%d,"items":[%b]}' % (self._accepted, count - self._accepted, items)
        headers = [
            (b"content-type", JSON),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self._out_of_room is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self._out_of_room.retry_after_s or 1))))
        return 202 if self._unfinished else 200, headers, body
