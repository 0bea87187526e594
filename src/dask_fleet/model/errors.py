"""The one error tree, shared by server, SDK and CLI.

::

    FleetError
    ├── RequestError                the caller must change something
    │   ├── BadJSON · BadRequest · InvalidParameters · IdempotencyMismatch · BodyTooLarge · UnsupportedMediaType
    │   ├── RequestTimeout · HeadersTooLarge
    │   ├── Unauthorized · Forbidden · HostNotAllowed
    │   ├── NotFound · MethodNotAllowed · NotAcceptable · PreconditionFailed · RangeNotSatisfiable
    │   ├── Conflict · ResultExpired
    │   └── QuotaExceeded · ClusterImpossible · ClusterFailed · VersionMismatch
    ├── CapacityError               the caller may try again later
    │   └── QueueFull · Draining · LedgerUnavailable (LedgerFull) · SpoolFull · TooManyConnections · AgentUnreachable
    ├── JobError                    the job ended without a result
    │   └── JobFailed · JobCancelled · JobExpired
    ├── SetupError                  found at start; the message names the cure
    │   └── ConfigError · ServiceDefinitionError · ServiceImportError · LedgerInUse · LedgerTooNew · BindRefused ·
    │       ClearTextRefused
    ├── ConnectionFailed · UntrustedServer · WaitTimeout   the SDK could not reach the server, or waited long enough
    └── InternalError · InvalidTransition · ResultCorrupt · ProtocolError

Each class has a stable ``code`` (what a program tests), an HTTP ``status`` and ``retryable``. The message is safe to show.
Problem documents (RFC 9457) are made from them in one place of the server, and the SDK raises the same classes again.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FleetError(Exception):
    """Something Fleet tells its user; see the subclasses."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, code: str | None = None, status: int | None = None, title: str | None = None, retryable: bool | None = None
    ) -> None:
        """A kind of it; what is not given is as its parent has it."""
        super().__init_subclass__()
        cls.code = cls.code if code is None else code
        cls.status = cls.status if status is None else status
        cls.title = cls.title if title is None else title
        cls.retryable = cls.retryable if retryable is None else retryable

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None, **extra: Any) -> None:
        """`detail` is for people; `extra` becomes members of the problem document and must be JSON-able."""
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s
        self.extra = extra


class RequestError(FleetError, code="bad_request", status=400, title="Bad request"):
    """The request is at fault; repeating it unchanged will fail again."""


class BadRequest(RequestError):
    """A header, query parameter or path is malformed; the detail names it."""


class BadJSON(RequestError, code="bad_json", title="Malformed JSON"):
    """The body is not JSON as RFC 8259 and I-JSON (RFC 7493) have it, or passes our depth and node limits."""


class InvalidParameters(RequestError, code="invalid_parameters", status=422, title="Invalid parameters"):
    """The parameters do not fit the endpoint's schema; ``errors`` names each field."""


class IdempotencyMismatch(
    RequestError, code="idempotency_mismatch", status=422, title="Idempotency-Key reused with another request"
):
    """The Idempotency-Key was used before with another request."""


class BodyTooLarge(RequestError, code="body_too_large", status=413, title="Body too large"):
    """The body is over the limit."""


class UnsupportedMediaType(RequestError, code="unsupported_media_type", status=415, title="Unsupported media type"):
    """Parameters travel as application/json, unencoded."""


class RequestTimeout(RequestError, code="request_timeout", status=408, title="The request took too long", retryable=True):
    """The body did not arrive in time; the connection is closed. Send it faster, or in smaller parts."""


class HeadersTooLarge(RequestError, code="headers_too_large", status=431, title="Request header fields too large"):
    """Request line and headers are too large or too many."""


class Unauthorized(RequestError, code="unauthorized", status=401, title="A valid token is needed"):
    """No token, or one that is unknown, expired or revoked: the answer does not say which."""


class Forbidden(RequestError, code="forbidden", status=403, title="Forbidden"):
    """The token lacks a scope, or a browser request comes from another site."""


class HostNotAllowed(RequestError, code="host_not_allowed", status=421, title="Misdirected request"):
    """The Host header names a host this server does not answer for (protects from DNS rebinding)."""


class NotFound(RequestError, code="not_found", status=404, title="Not found"):
    """No such service, endpoint, job, cursor or page; also what belongs to another tenant."""


class MethodNotAllowed(RequestError, code="method_not_allowed", status=405, title="Method not allowed"):
    """The path exists, but not with this method."""


class NotAcceptable(RequestError, code="not_acceptable", status=406, title="Not acceptable"):
    """The result has no form that the Accept header allows; ``available`` lists what there is."""


class PreconditionFailed(RequestError, code="precondition_failed", status=412, title="Precondition failed"):
    """The result is not the one that the If-Match header names; GET it again without the header."""


class RangeNotSatisfiable(RequestError, code="range_not_satisfiable", status=416, title="Range not satisfiable"):
    """The Range header lies outside the result."""


class Conflict(RequestError, code="conflict", status=409, title="Conflict"):
    """The job is in a state in which this cannot be done; ``job_status`` names the state."""


class ResultExpired(RequestError, code="result_expired", status=410, title="Result expired"):
    """The result was kept as long as the endpoint's ``cache`` says and is gone; POST the request again."""


class QuotaExceeded(RequestError, code="quota_exceeded", status=429, title="Quota exceeded"):
    """The user has as much as the server allows; give something back, or ask who runs the server for more."""


class ClusterImpossible(RequestError, code="cluster_impossible", status=422, title="No such cluster can be had"):
    """No agent that there is could ever give what the cluster asks for, or the server allows; the message says what is."""


class ClusterFailed(RequestError, code="cluster_failed", status=409, title="The cluster could not be had"):
    """The cluster was recorded, but could not be brought up; the message says why, and nothing of it is left running."""


class VersionMismatch(RequestError, code="version_mismatch", status=409, title="Versions do not match"):
    """Python or ``distributed`` of caller and clusters differ so that Dask would fail; ``mismatched`` lists both."""


class CapacityError(FleetError, retryable=True, status=503, code="unavailable", title="Unavailable"):
    """Nothing is wrong with the request; come back after ``Retry-After``."""


class QueueFull(CapacityError, code="queue_full", status=429, title="The queue is full"):
    """More jobs are queued than the server's ``max_queued``."""


class Draining(CapacityError, code="draining", title="Shutting down"):
    """The server is shutting down and takes no new work."""


class LedgerUnavailable(CapacityError, code="ledger_unavailable", title="The ledger is unavailable"):
    """The ledger cannot be written now; nothing was accepted."""


class SpoolFull(CapacityError, code="spool_full", status=507, title="No room for the result"):
    """There is no room for a result that an agent uploads; it keeps it and tries again."""


class LedgerFull(LedgerUnavailable, code="ledger_full", status=507, title="The ledger is full"):
    """The ledger's disk is full; nothing was accepted. It goes on by itself once there is room."""


class TooManyConnections(CapacityError, code="too_many_connections", title="Too many connections"):
    """The caller's address, or all together, have as many connections as the server takes; close some or use them again."""


class AgentUnreachable(CapacityError, code="agent_unreachable", status=504, title="The agent does not answer"):
    """The agent that must do it is not connected, or did not answer in time; it may come back any moment."""


class JobError(FleetError, code="job_failed", status=409, title="The job has no result"):
    """The job ended without a result. ``failure`` is the failure document of the job, if any."""

    @property
    def failure(self) -> dict[str, Any] | None:
        """Members of `Failure`: ``cause``, ``message``, ``type``, ``traceback``, ``errors``, ``signal``, ``exit_code``."""
        return self.extra.get("failure")

    @property
    def cause(self) -> str | None:
        """The word for why (``exception``, ``worker_died``, ``memory_limit``, …); ``None`` if it was no failure."""
        return (self.failure or {}).get("cause")

    @property
    def signal(self) -> str | None:
        """The signal that ended its worker process, as ``"SIGSEGV"``; ``None`` if none did."""
        return (self.failure or {}).get("signal")

    @property
    def exit_code(self) -> int | None:
        """What its worker process left with; ``None`` if it did not leave by itself."""
        return (self.failure or {}).get("exit_code")


class JobFailed(JobError, title="The job failed"):
    """The job failed; ``cause`` says how (``exception``, ``timeout``, ``invalid_parameters``, …)."""


class JobCancelled(JobError, code="job_cancelled", title="The job was cancelled"):
    """The job was cancelled."""


class JobExpired(JobError, code="job_expired", title="The job expired"):
    """The job's deadline passed before it ran."""


class SetupError(FleetError, code="setup_error", title="Cannot start"):
    """Something is wrong before work can begin; the message names the cure, the process exits with ``exit_code``."""

    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, *, exit_code: int | None = None, **said: Any) -> None:
        """A kind of it; `exit_code` as its parent has it, if not given."""
        super().__init_subclass__(**said)
        if exit_code is not None:
            cls.exit_code = exit_code


class ConfigError(SetupError, code="config_error", title="Bad configuration", exit_code=2):
    """A setting is unknown or malformed."""


class ServiceDefinitionError(SetupError, code="service_definition_error", title="The service cannot be described"):
    """A service says something a manifest cannot express; names function and parameter."""


class ServiceImportError(SetupError, code="service_import_error", title="The service cannot be imported"):
    """A service's module cannot be imported; names file and line."""


class LedgerInUse(SetupError, code="ledger_in_use", title="The ledger is in use"):
    """Another server has this data folder open."""


class LedgerTooNew(SetupError, code="ledger_too_new", title="The ledger is too new"):
    """The ledger was written by a newer Fleet; install that version or restore a backup."""


class BindRefused(SetupError, code="bind_refused", title="Refused to listen there", exit_code=78):
    """The bind address would expose the server without TLS (exit code 78, EX_CONFIG of sysexits.h)."""


class ClearTextRefused(SetupError, code="clear_text_refused", title="Refused to connect without TLS", exit_code=78):
    """An agent would send its token to another host in the clear (exit code 78, EX_CONFIG of sysexits.h)."""


class ConnectionFailed(FleetError, code="connection_failed", title="Cannot reach the server", retryable=True):
    """The server could not be reached; the message names its URL and what to check."""


class UntrustedServer(ConnectionFailed, code="untrusted_server", title="Refused to speak with the server", retryable=False):
    """The server is not the one that was meant: another key than the pinned one, or no authority vouches for it."""


class WaitTimeout(FleetError, TimeoutError, code="wait_timeout", title="Still not done", retryable=True):
    """The job was not done in the time given; it goes on."""


class InternalError(FleetError):
    """A fault of ours; the server's log has the story under the request's id."""


class InvalidTransition(FleetError, RuntimeError):
    """A change of state that no table has: a fault of ours."""


class ResultCorrupt(FleetError, code="result_corrupt", title="The stored result is damaged"):
    """The stored bytes do not match the digest in the ledger; they are not served."""


class ProtocolError(FleetError, code="protocol_error", title="Protocol error"):
    """An agent sent what the protocol does not have."""


def error_classes() -> dict[str, type[FleetError]]:
    """Return every class of the tree by its ``code``; of several with one code, the most general."""
    found: dict[str, type[FleetError]] = {}
    level: list[type[FleetError]] = [FleetError]
    while level:
        for cls in level:
            found.setdefault(cls.code, cls)
        level = [sub for cls in level for sub in cls.__subclasses__()]
    return found
