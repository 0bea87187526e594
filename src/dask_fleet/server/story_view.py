"""The story of a job as the API tells it: plain text, a JSON document, and a sentence for each event of a stream."""

from __future__ import annotations

from typing import Any

from dask_fleet.controller.controller import Controller
from dask_fleet.controller.decisions import DEATH_RETRIES, INFRASTRUCTURE_RETRIES
from dask_fleet.model import story
from dask_fleet.model.jobs import EventRecord, JobRecord
from dask_fleet.model.states import RunState
from dask_fleet.server.documents import rfc3339

PAGE = 1_000
MAX_EVENTS = 10_000
"""A job that was asked for again thousands of times has the beginning of its story told; `after` leads on."""

BUDGETS = story.Budgets(faults=INFRASTRUCTURE_RETRIES, deaths=DEATH_RETRIES)


async def events_of(controller: Controller, job: JobRecord) -> list[EventRecord]:
    """Return the events of a job, at most `MAX_EVENTS`."""
    events: list[EventRecord] = []
    while len(events) < MAX_EVENTS:
        page = await controller.ledger.events(job.seq, after=events[-1].event_id if events else 0, limit=PAGE)
        events += page
        if len(page) < PAGE:
            break
    return events


async def teller_of(controller: Controller, job: JobRecord, *, until: int = 0) -> story.Teller:
    """Return a teller of the job's story that has told the events up to the id `until` already."""
    teller = story.Teller(job, await controller.ledger.attempts(job.seq), budgets=BUDGETS)
    if until:
        for event in await events_of(controller, job):
            if event.event_id > until:
                break
            teller.line(event)
    return teller


def event_document(line: story.Line) -> dict[str, Any]:
    """Return what the API says of an event."""
    return {
        "event_id": line.event_id,
        "run": line.run,
        "attempt": line.attempt,
        "kind": line.kind.value,
        "at": rfc3339(line.at_us),
        "data": line.data,
        "text": line.text,
    }


async def story_document(controller: Controller, job: JobRecord, *, after: int) -> dict[str, Any]:
    """Return the story as a document: its events after an id, where the job stands, and what to do if it failed."""
    lines = await _lines(controller, job)
    return {
        "job_id": job.job_id,
        "status": job.state.value,
        "events": [event_document(line) for line in lines if line.event_id > after],
        "standing": _standing(controller, job),
        "cure": story.cure(job),
    }


async def story_text(controller: Controller, job: JobRecord, *, after: int) -> str:
    """Return the story as plain text."""
    lines = [line for line in await _lines(controller, job) if line.event_id > after]
    title = f"{job.service}.{job.endpoint}, job {job.job_id} of {job.user}: {job.state.value}"
    return story.as_text(lines, title=title, now=_standing(controller, job), cure=story.cure(job))


async def _lines(controller: Controller, job: JobRecord) -> list[story.Line]:
    events = await events_of(controller, job)
    return story.tell(job, events, await controller.ledger.attempts(job.seq), budgets=BUDGETS)


def _standing(controller: Controller, job: JobRecord) -> str:
    progress = controller.progress_of(job.seq) if job.state is RunState.RUNNING else None
    far = f"{progress.done:g} of {progress.total:g} {progress.text}".rstrip() if progress is not None else None
    waiting_for = controller.waiting_for(job) if job.state is RunState.QUEUED else None
    return story.standing(job, now_us=controller.clock.now_us(), waiting_for=waiting_for, progress=far)
