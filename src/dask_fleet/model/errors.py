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

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None, **extra: Any) -> None:
        """`detail` is for people; `extra` becomes members of the problem document and must be JSON-able."""
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s
        self.extra = extra


class RequestError(FleetError):
    """The request is at fault; repeating it unchanged will fail again."""

    code = "bad_request"
    status = 400
    title = "Bad request"


class BadRequest(RequestError):
    """A header, query parameter or path is malformed; the detail names it."""


class BadJSON(RequestError):
    """The body is not JSON as RFC 8259 and I-JSON (RFC 7493) have it, or passes our depth and node limits."""

    code = "bad_json"
    title = "Malformed JSON"


class InvalidParameters(RequestError):
    """The parameters do not fit the endpoint's schema; ``errors`` names each field."""

    code = "invalid_parameters"
    status = 422
    title = "Invalid parameters"


class IdempotencyMismatch(RequestError):
    """The Idempotency-Key was used before with another request."""

    code = "idempotency_mismatch"
    status = 422
    title = "Idempotency-Key reused with another request"


class BodyTooLarge(RequestError):
    """The body is over the limit."""

    code = "body_too_large"
    status = 413
    title = "Body too large"


class UnsupportedMediaType(RequestError):
    """Parameters travel as application/json, unencoded."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"


class RequestTimeout(RequestError):
    """The body did not arrive in time; the connection is closed. Send it faster, or in smaller parts."""

    code = "request_timeout"
    status = 408
    title = "The request took too long"
    retryable = True


class HeadersTooLarge(RequestError):
    """Request line and headers are too large or too many."""

    code = "headers_too_large"
    status = 431
    title = "Request header fields too large"


class Unauthorized(RequestError):
    """No token, or one that is unknown, expired or revoked: the answer does not say which."""

    code = "unauthorized"
    status = 401
    title = "A valid token is needed"


class Forbidden(RequestError):
    """The token lacks a scope, or a browser request comes from another site."""

    code = "forbidden"
    status = 403
    title = "Forbidden"


class HostNotAllowed(RequestError):
    """The Host header names a host this server does not answer for (protects from DNS rebinding)."""

    code = "host_not_allowed"
    status = 421
    title = "Misdirected request"


class NotFound(RequestError):
    """No such service, endpoint, job, cursor or page; also what belongs to another tenant."""

    code = "not_found"
    status = 404
    title = "Not found"


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class NotAcceptable(RequestError):
    """The result has no form that the Accept header allows; ``available`` lists what there is."""

    code = "not_acceptable"
    status = 406
    title = "Not acceptable"


class PreconditionFailed(RequestError):
    """The result is not the one that the If-Match header names; GET it again without the header."""

    code = "precondition_failed"
    status = 412
    title = "Precondition failed"


class RangeNotSatisfiable(RequestError):
    """The Range header lies outside the result."""

    code = "range_not_satisfiable"
    status = 416
    title = "Range not satisfiable"


class Conflict(RequestError):
    """The job is in a state in which this cannot be done; ``job_status`` names the state."""

    code = "conflict"
    status = 409
    title = "Conflict"


class ResultExpired(RequestError):
    """The result was kept as long as the endpoint's ``cache`` says and is gone; POST the request again."""

    code = "result_expired"
    status = 410
    title = "Result expired"


class QuotaExceeded(RequestError):
    """The user has as much as the server allows; give something back, or ask who runs the server for more."""

    code = "quota_exceeded"
    status = 429
    title = "Quota exceeded"


class ClusterImpossible(RequestError):
    """No agent that there is could ever give what the cluster asks for; the message says what there is."""

    code = "cluster_impossible"
    status = 422
    title = "No such cluster can be had"


class ClusterFailed(RequestError):
    """The cluster was recorded, but could not be brought up; the message says why, and nothing of it is left running."""

    code = "cluster_failed"
    status = 409
    title = "The cluster could not be had"


class VersionMismatch(RequestError):
    """Python or ``distributed`` of caller and clusters differ so that Dask would fail; ``mismatched`` lists both."""

    code = "version_mismatch"
    status = 409
    title = "Versions do not match"


class CapacityError(FleetError):
    """Nothing is wrong with the request; come back after ``Retry-After``."""

    retryable = True
    status = 503
    code = "unavailable"
    title = "Unavailable"


class QueueFull(CapacityError):
    """More jobs are queued than the server's ``max_queued``."""

    code = "queue_full"
    status = 429
    title = "The queue is full"


class Draining(CapacityError):
    """The server is shutting down and takes no new work."""

    code = "draining"
    title = "Shutting down"


class LedgerUnavailable(CapacityError):
    """The ledger cannot be written now; nothing was accepted."""

    code = "ledger_unavailable"
    title = "The ledger is unavailable"


class SpoolFull(CapacityError):
    """There is no room for a result that an agent uploads; it keeps it and tries again."""

    code = "spool_full"
    status = 507
    title = "No room for the result"


class LedgerFull(LedgerUnavailable):
    """The ledger's disk is full; nothing was accepted. It goes on by itself once there is room."""

    code = "ledger_full"
    status = 507
    title = "The ledger is full"


class TooManyConnections(CapacityError):
    """The caller's address, or all together, have as many connections as the server takes; close some or use them again."""

    code = "too_many_connections"
    title = "Too many connections"


class AgentUnreachable(CapacityError):
    """The agent that must do it is not connected, or did not answer in time; it may come back any moment."""

    code = "agent_unreachable"
    status = 504
    title = "The agent does not answer"


class JobError(FleetError):
    """The job ended without a result. ``failure`` is the failure document of the job, if any."""

    code = "job_failed"
    status = 409
    title = "The job has no result"

    @property
    def failure(self) -> dict[str, Any] | None:
        """Members of `Failure`: ``cause``, ``message``, ``type``, ``traceback``, ``errors``."""
        return self.extra.get("failure")


class JobFailed(JobError):
    """The job failed; ``cause`` says how (``exception``, ``timeout``, ``invalid_parameters``, …)."""

    title = "The job failed"


class JobCancelled(JobError):
    """The job was cancelled."""

    code = "job_cancelled"
    title = "The job was cancelled"


class JobExpired(JobError):
    """The job's deadline passed before it ran."""

    code = "job_expired"
    title = "The job expired"


class SetupError(FleetError):
    """Something is wrong before work can begin; the message names the cure, the process exits with ``exit_code``."""

    code = "setup_error"
    title = "Cannot start"
    exit_code: ClassVar[int] = 1


class ConfigError(SetupError):
    """A setting is unknown or malformed."""

    code = "config_error"
    title = "Bad configuration"
    exit_code = 2


class ServiceDefinitionError(SetupError):
    """A service says something a manifest cannot express; names function and parameter."""

    code = "service_definition_error"
    title = "The service cannot be described"


class ServiceImportError(SetupError):
    """A service's module cannot be imported; names file and line."""

    code = "service_import_error"
    title = "The service cannot be imported"


class LedgerInUse(SetupError):
    """Another server has this data folder open."""

    code = "ledger_in_use"
    title = "The ledger is in use"


class LedgerTooNew(SetupError):
    """The ledger was written by a newer Fleet; install that version or restore a backup."""

    code = "ledger_too_new"
    title = "The ledger is too new"


class BindRefused(SetupError):
    """The bind address would expose the server without TLS (exit code 78, EX_CONFIG of sysexits.h)."""

    code = "bind_refused"
    title = "Refused to listen there"
    exit_code = 78


class ClearTextRefused(SetupError):
    """An agent would send its token to another host in the clear (exit code 78, EX_CONFIG of sysexits.h)."""

    code = "clear_text_refused"
    title = "Refused to connect without TLS"
    exit_code = 78


class ConnectionFailed(FleetError):
    """The server could not be reached; the message names its URL and what to check."""

    code = "connection_failed"
    title = "Cannot reach the server"
    retryable = True


class UntrustedServer(ConnectionFailed):
    """The server is not the one that was meant: another key than the pinned one, or no authority vouches for it."""

    code = "untrusted_server"
    title = "Refused to speak with the server"
    retryable = False


class WaitTimeout(FleetError, TimeoutError):
    """The job was not done in the time given; it goes on."""

    code = "wait_timeout"
    title = "Still not done"
    retryable = True


class InternalError(FleetError):
    """A fault of ours; the server's log has the story under the request's id."""


class InvalidTransition(FleetError, RuntimeError):
    """A change of state that no table has: a fault of ours."""


class ResultCorrupt(FleetError):
    """The stored bytes do not match the digest in the ledger; they are not served."""

    code = "result_corrupt"
    title = "The stored result is damaged"


class ProtocolError(FleetError):
    """An agent sent what the protocol does not have."""

    code = "protocol_error"
    title = "Protocol error"


def error_classes() -> dict[str, type[FleetError]]:
    """Return every class of the tree by its ``code``; of several with one code, the most general."""
    found: dict[str, type[FleetError]] = {}
    level: list[type[FleetError]] = [FleetError]
    while level:
        for cls in level:
            found.setdefault(cls.code, cls)
        level = [sub for cls in level for sub in cls.__subclasses__()]
    return found
