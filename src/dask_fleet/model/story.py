"""The story of a job: how it came to its state, in sentences a person understands. Pure; told from the ledger alone.

An event says what was decided, an attempt's record how it ended; together with the order in which they came they say who
was charged with what, and what is still allowed. Whatever is told here can be told again after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import AttemptRecord, EventRecord, JobRecord
from dask_fleet.model.states import EventKind, OpenReason, RunState

MAX_MESSAGE_CHARS = 300
"""Of a failure's message within a sentence: the whole stands in the job's ``error``."""

CURES: dict[Cause, str] = {
    Cause.EXCEPTION: "Its traceback is in the job's error. Mend the function, then retry the job; if the fault passes by"
    " itself, let Fleet try again with `retries=` of the endpoint.",
    Cause.TIMEOUT: "Raise `timeout=` of the endpoint, or give the call less to do, then retry the job.",
    Cause.INVALID_PARAMETERS: "Call again with parameters that the validator accepts; a retry would be refused alike.",
    Cause.RESULT_NOT_SERIALIZABLE: "Return one of the types that the message names, then retry the job.",
    Cause.RESULT_TOO_LARGE: "Return less, or raise `max_result=` of the endpoint, then retry the job.",
    Cause.RESULT_STORE_FULL: "Free space where the data folder lies, then retry the job.",
    Cause.WORKER_DIED: "Look for native code that crashes, os._exit and the kernel's out-of-memory killer (`dmesg`); the"
    " job's logs may hold its last words. Then retry the job: it runs alone.",
    Cause.MEMORY_LIMIT: "Give the call less to do, or worker processes more memory (`--memory-limit`, or fewer"
    " `--nworkers`), then retry the job.",
    Cause.STOPPED: "Somebody stopped its worker process (SIGSTOP, a debugger). Retry the job.",
    Cause.AGENT_LOST: "Look into the agent's log and at its host; then retry the job.",
    Cause.CLUSTER_UNAVAILABLE: "Ask for a smaller cluster (workers=, threads_per_worker=, resources= of the endpoint), or"
    " add agents to the pool.",
    Cause.CLUSTER_LOST: "The scheduler of its Dask cluster was lost again and again: the agents' logs say why. Then"
    " retry the job.",
    Cause.SERVICE_UNAVAILABLE: "The worker could not import the service: mend its module or its packages where the agent"
    " runs, then retry the job.",
}
"""What to do about a job that failed of it."""

_FAULTS = {
    Cause.AGENT_LOST: "was lost",
    Cause.RESULT_STORE_FULL: "could not keep its result",
    Cause.CLUSTER_LOST: "lost the scheduler of its Dask cluster",
}


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """How often a run is tried again, by whose fault it was; the endpoint's own ``retries`` are in the job's policy."""

    faults: int = 3
    """Agents lost, and results that could not be stored."""
    deaths: int = 1
    """Worker processes that died while the job was alone in them; those by the memory limit are counted apart."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of a story."""

    event_id: int
    run: int
    attempt: int
    kind: EventKind
    at_us: int
    since_us: int | None
    """Since the line before; ``None`` for the first."""
    text: str
    data: dict[str, object]


class Teller:
    """Tells a job's events one by one, in their order, so that what came before can be spoken of.

    Parameters
    ----------
    job
        The job as it is now.
    attempts
        Its executions so far; give later ones to `learn`.
    """

    def __init__(self, job: JobRecord, attempts: Sequence[AttemptRecord] = (), *, budgets: Budgets | None = None) -> None:
        self._job = job
        self._budgets = budgets or Budgets()
        self._attempts: dict[int, AttemptRecord] = {}
        self.learn(job, attempts)
        self._run = 0
        self._last_us: int | None = None
        self._began()

    def _began(self) -> None:
        self._exceptions = self._faults = self._deaths = self._memory_kills = 0
        self._suspect = False

    def learn(self, job: JobRecord, attempts: Sequence[AttemptRecord]) -> None:
        """Take newer records of the same job."""
        self._job = job
        self._attempts.update((attempt.attempt, attempt) for attempt in attempts)

    def line(self, event: EventRecord) -> Line:
        """Return the sentence of the next event."""
        if event.run != self._run:
            # A job whose last run ended by a death begins the next one as a suspect.
            stays = self._suspect and self._run > 0
            self._run = event.run
            self._began()
            self._suspect = stays
        text = self._sentence(event)
        since_us = None if self._last_us is None else event.at_us - self._last_us
        self._last_us = event.at_us
        return Line(
            event_id=event.event_id, run=event.run, attempt=event.attempt, kind=event.kind, at_us=event.at_us,
            since_us=since_us, text=text, data=event.data,
        )

    def _sentence(self, event: EventRecord) -> str:
        match event.kind:
            case EventKind.ACCEPTED:
                return f"accepted from {_who(event.data)}{self._terms(event)}"
            case EventKind.REOPENED:
                why = f"run {event.run}, {_why_again(event.data)}"
                return f"asked for again by {_who(event.data)}: {why}{self._terms(event)}"
            case EventKind.STARTED:
                agent = event.data.get("agent")
                alone = ", alone in its worker process" if self._suspect else ""
                return f"attempt {event.attempt} started on agent {agent}{alone}"
            case EventKind.RETRYING:
                return f"{self._ended(event)}; {_next(event)}"
            case EventKind.CANCEL_REQUESTED:
                return f"{_who(event.data)} asked to cancel it: attempt {event.attempt} was told to stop"
            case EventKind.SUCCEEDED:
                self._suspect = False
                return f"attempt {event.attempt} succeeded{self._took(event)}"
            case EventKind.FAILED:
                if "cause" not in event.data:
                    return "failed"
                told = f"{self._ended(event)}; the job failed"
                failure = self._failure(event)
                self._suspect = failure is not None and failure.cause.is_death
                return told
            case EventKind.CANCELLED:
                by = f" by {_who(event.data)}" if "by" in event.data else ""
                return f"cancelled{by}{self._took(event) if event.attempt and not by else ''}"
            case EventKind.EXPIRED:
                return f"expired: it had not started by its deadline{_clock_of(event.data.get('deadline_us'))}"

    def _terms(self, event: EventRecord) -> str:
        """Return the run's priority and deadline; of earlier runs they are not kept at hand."""
        if event.run != self._job.run:
            return ""
        deadline = f", to be started by{_clock_of(self._job.deadline_us)}" if self._job.deadline_us is not None else ""
        return f" (priority {self._job.priority}{deadline})"

    def _ended(self, event: EventRecord) -> str:
        """Say how an attempt without a result ended, and who is charged with it."""
        failure = self._failure(event)
        name = f"attempt {event.attempt}"
        took = self._took(event)
        if failure is None:
            return f"{name} was given back by its agent: nobody is charged"
        cause, message = failure.cause, _short(failure.message)
        if cause is Cause.EXCEPTION:
            self._exceptions += 1
            kind = f"{failure.type}: " if failure.type else ""
            retries = self._job.policy.retries if event.run == self._job.run else None
            count = f" (exception {self._exceptions}, retries: {retries})" if retries is not None else ""
            return f"{name} raised {kind}{message}{took}{count}"
        if cause.is_death:
            return f"{name}{took}: {message or 'its worker process died'}{self._charge(event, cause)}"
        if cause is Cause.AGENT_LOST or cause.is_infrastructure:
            self._faults += 1
            lost = _FAULTS.get(cause, "was lost")
            why = f": {message}" if message else ""
            return f"{name} {lost}{took}{why} (fault of the machinery {self._faults}, {self._budgets.faults} are forgiven)"
        words = {
            Cause.TIMEOUT: "ran into its time-out",
            Cause.INVALID_PARAMETERS: "found its parameters invalid",
            Cause.RESULT_NOT_SERIALIZABLE: "returned what cannot be kept",
            Cause.RESULT_TOO_LARGE: "returned too much",
            Cause.SERVICE_UNAVAILABLE: "found no code to run",
            Cause.CLUSTER_UNAVAILABLE: "could not have its Dask cluster",
        }
        return f"{name} {words.get(cause, 'failed')}{took}{f': {message}' if message else ''}"

    def _charge(self, event: EventRecord, cause: Cause) -> str:
        if event.data.get("charged"):
            self._suspect = True
            of_memory = cause is Cause.MEMORY_LIMIT
            self._memory_kills += of_memory
            self._deaths += not of_memory
            number = self._memory_kills if of_memory else self._deaths
            return f"; it was alone there, so it is charged ({number} of {self._budgets.deaths + 1})"
        newly = bool(event.data.get("suspect")) and not self._suspect
        if newly:
            self._suspect = True
            return "; other jobs ran there too: nobody is charged, it runs alone from now on"
        return "; nobody is charged"

    def _failure(self, event: EventRecord) -> Failure | None:
        attempt = self._attempts.get(event.attempt)
        if attempt is not None and attempt.failure is not None:
            return attempt.failure
        if event.attempt == self._job.attempt and self._job.failure is not None:
            return self._job.failure
        cause = event.data.get("cause")
        # Its record is gone or not read yet: the event alone says the least.
        return Failure(cause=Cause(cause), message="") if isinstance(cause, str) else None

    def _took(self, event: EventRecord) -> str:
        attempt = self._attempts.get(event.attempt)
        if attempt is None or attempt.finished_us is None:
            return ""
        return f" after {span((attempt.finished_us - attempt.started_us) / 1e6)}"


def tell(
    job: JobRecord, events: Sequence[EventRecord], attempts: Sequence[AttemptRecord], *, budgets: Budgets | None = None
) -> list[Line]:
    """Return the story of a job so far, a line for each event."""
    teller = Teller(job, attempts, budgets=budgets)
    return [teller.line(event) for event in events]


def standing(job: JobRecord, *, now_us: int, waiting_for: str | None = None, progress: str | None = None) -> str:
    """Return a sentence on where the job stands now."""
    since = span(max(0, now_us - (job.started_us or job.opened_us)) / 1e6)
    match job.state:
        case RunState.QUEUED:
            return f"It waits for {waiting_for or 'its turn'}."
        case RunState.RUNNING:
            asked = f"; {job.cancel_requested_by} asked to cancel it" if job.cancel_requested_by else ""
            far = f", at {progress}" if progress else ""
            return f"Attempt {job.attempt} has been running on agent {job.agent} for {since}{far}{asked}."
        case RunState.SUCCEEDED:
            if job.result_run is None:
                return "It succeeded; its result is no longer kept. Call it again to compute it anew."
            return f"It succeeded; its result is kept until {when(job.result_expires_us)}."
        case RunState.FAILED:
            cause = f" of {job.failure.cause}" if job.failure is not None else ""
            return f"It failed{cause}."
        case RunState.CANCELLED:
            by = f" by {job.cancel_requested_by}" if job.cancel_requested_by else ""
            return f"It was cancelled{by}; it can be retried."
        case RunState.EXPIRED:
            return "It expired before it could start; it can be retried, without a deadline."


def cure(job: JobRecord) -> str | None:
    """Return what to do about a failed job; ``None`` for any other."""
    if job.state is not RunState.FAILED or job.failure is None:
        return None
    return CURES[job.failure.cause]


def span(seconds: float) -> str:
    """Return a length of time in the unit that people would choose: ``120 ms``, ``3.2 s``, ``12 min``, ``4 h``, ``3 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def when(at_us: int | None) -> str:
    """Return a time as people read it, in UTC: ``2026-01-31 06:12:03Z``."""
    if at_us is None:
        return "an unknown time"
    return f"{datetime.fromtimestamp(at_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%SZ}"


def as_text(lines: Sequence[Line], *, title: str, now: str, cure: str | None) -> str:
    """Return a whole story as plain text: a title, a line an event with its time of day (UTC), how it stands, what to do."""
    told = [title]
    day = ""
    for line in lines:
        moment = datetime.fromtimestamp(line.at_us // 1_000_000, UTC)
        if f"{moment:%Y-%m-%d}" != day:
            day = f"{moment:%Y-%m-%d}"
            told.append(f"{day} (UTC)")
        since = "" if line.since_us is None else f"+{span(line.since_us / 1e6)}"
        told.append(f"  {moment:%H:%M:%S}.{line.at_us // 1000 % 1000:03d}  {since:>9}  {line.text}")
    told.append(now)
    if cure is not None:
        told.append(cure)
    return "\n".join(told) + "\n"


def _who(data: Mapping[str, object]) -> str:
    return str(data.get("by") or "somebody")


def _why_again(data: Mapping[str, object]) -> str:
    return {
        OpenReason.RETRY: "a retry",
        OpenReason.REFRESH: "a refresh, while the result there was stays served",
    }.get(OpenReason(str(data.get("reason") or OpenReason.POST)), "as no result of it was kept")


def _next(event: EventRecord) -> str:
    not_before_us = event.data.get("not_before_us")
    wait_us = not_before_us - event.at_us if isinstance(not_before_us, int) else 0
    return f"next attempt in {span(wait_us / 1e6)}" if wait_us > 0 else "it waits for a slot again"


def _clock_of(at_us: object) -> str:
    return f" {when(at_us)}" if isinstance(at_us, int) else ""


def _short(message: str) -> str:
    first = message.strip().partition("\n")[0]
    return first if len(first) <= MAX_MESSAGE_CHARS else first[:MAX_MESSAGE_CHARS] + "…"
