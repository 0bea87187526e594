"""Why a run or an attempt has no result."""

from __future__ import annotations

from enum import StrEnum

import msgspec

MAX_MESSAGE_CHARS = 4_000
MAX_TRACEBACK_CHARS = 16_000


class Cause(StrEnum):
    """The stable word for why; ``jobs show`` and problem documents carry it."""

    EXCEPTION = "exception"
    """The function raised."""
    TIMEOUT = "timeout"
    """The attempt ran past the endpoint's time-out."""
    INVALID_PARAMETERS = "invalid_parameters"
    """A validator written in Python refused the parameters."""
    RESULT_NOT_SERIALIZABLE = "result_not_serializable"
    """The function returned what no codec takes; the message names the type and what can be returned."""
    RESULT_TOO_LARGE = "result_too_large"
    """The encoded result is over the endpoint's ``max_result``."""
    RESULT_STORE_FULL = "result_store_full"
    """The result could not be written."""
    WORKER_DIED = "worker_died"
    """The worker process ended under the attempt; ``signal`` or ``exit_code`` says how."""
    MEMORY_LIMIT = "memory_limit"
    """The worker process came too close to its memory limit and was killed; ``peak_bytes`` says how much it had."""
    STOPPED = "stopped"
    """The worker process was stopped (``SIGSTOP``, a debugger) and therefore replaced."""
    AGENT_LOST = "agent_lost"
    """The agent went away with the attempt."""
    SERVICE_UNAVAILABLE = "service_unavailable"
    """The worker could not load the service's code."""
    CLUSTER_UNAVAILABLE = "cluster_unavailable"
    """The job asks for a Dask cluster that the pool cannot give; the message says what it lacks."""
    CLUSTER_LOST = "cluster_lost"
    """The scheduler of the job's Dask cluster went away under the attempt."""

    @property
    def is_infrastructure(self) -> bool:
        """Whether the fault lies in our machinery, not in the function: its retries are counted apart."""
        return self in {Cause.AGENT_LOST, Cause.RESULT_STORE_FULL, Cause.CLUSTER_LOST}

    @property
    def is_death(self) -> bool:
        """Whether a worker process ended under the attempt; whose fault that was, `Blame` says."""
        return self in {Cause.WORKER_DIED, Cause.MEMORY_LIMIT, Cause.STOPPED}


class Blame(StrEnum):
    """Who may have caused the death of a worker process, as its agent saw it. Dask's own blame is not used: it condemns
    whatever happened to be on the worker, innocent tasks of others too.
    """

    NONE = "none"
    """Not this attempt: its process was killed for another's sake, or the agent gave it up. Charged to nobody."""
    SHARED = "shared"
    """One of several that died together, in one process or with one forkserver: a suspect, charged to nobody, which runs
    alone from now on.
    """
    ALONE = "alone"
    """It was the only one in the process: charged. Or it ran past its time-out, and the process was killed for it."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is told about a failure: bounded text only, never an object of the user's code."""

    cause: Cause
    message: str
    type: str = ""
    """Name of the exception's class, for people; nothing looks it up."""
    traceback: str = ""
    signal: str | None = None
    """For ``worker_died`` and ``memory_limit``: the signal that ended the worker process, as ``"SIGSEGV"``, unless the agent
    itself sent it.
    """
    exit_code: int | None = None
    """For ``worker_died``: what the worker process left with, where it was no signal."""
    peak_bytes: int | None = None
    """For ``memory_limit``: the most memory (resident set) seen of the worker process, in bytes."""
    errors: list[dict[str, object]] = []
    """For ``invalid_parameters``: one document a field, with ``loc`` and ``msg``."""

    @classmethod
    def bounded(cls, cause: Cause, message: str, *, type: str = "", traceback: str = "",  # noqa: A002
                errors: list[dict[str, object]] | None = None, peak_bytes: int | None = None,
                signal: str | None = None, exit_code: int | None = None) -> Failure:
        """Return a failure whose texts can be sent and are cut to their limits (the end of a traceback is what tells)."""
        message, traceback = sendable(message), sendable(traceback)
        if len(traceback) > MAX_TRACEBACK_CHARS:
            traceback = "…" + traceback[-MAX_TRACEBACK_CHARS:]
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[:MAX_MESSAGE_CHARS] + "…"
        told = [_sendable_error(error) for error in (errors or [])[:100]]
        return cls(
            cause=cause, message=message, type=type[:200], traceback=traceback, errors=told, peak_bytes=peak_bytes,
            signal=signal, exit_code=exit_code,
        )


def sendable(text: str) -> str:
    """Return `text` with halves of surrogate pairs spelled out: Python makes them of file names that are no UTF-8, and no
    protocol carries them.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _sendable_error(error: dict[str, object]) -> dict[str, object]:
    return {name: sendable(value) if isinstance(value, str) else value for name, value in error.items()}
