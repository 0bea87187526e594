"""Many requests at once: accepted in few transactions, then queued like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from dask_fleet.controller.dispatcher import Dispatcher, Spawn
from dask_fleet.model.errors import Draining, FleetError
from dask_fleet.model.jobs import Accepted, NewRun
from dask_fleet.plugins.ledger import MAX_ACCEPT_MANY, Ledger

Answer: TypeAlias = Accepted | FleetError


class Batches:
    """Accepts many requests for one caller; what is wrong with one is its own entry.

    Batches take turns, one transaction each, so that a single request never waits for more than one of them.

    Parameters
    ----------
    ledger, dispatcher
        Where they are recorded, and who knows the unfinished jobs and the queue.
    max_queued
        Jobs that may be queued.
    enter
        Acts on what the ledger has recorded.
    without_room
        Answers a request while the queue is full: with what is known already, or by raising `QueueFull`.
    spawn
        Runs a coroutine as a named task that is awaited at shutdown.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        dispatcher: Dispatcher,
        max_queued: int,
        enter: Callable[[NewRun, Accepted], object],
        without_room: Callable[[NewRun], Awaitable[Accepted]],
        spawn: Spawn,
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._max_queued = max_queued
        self._enter = enter
        self._without_room = without_room
        self._spawn = spawn
        self._turn = asyncio.Lock()

    async def submit(self, news: Sequence[NewRun]) -> list[Answer]:
        """Do what `Intake.submit` does for each of `news`, in their order; see `Intake.submit_many`."""
        answers: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        # A task of its own: a caller who goes away in the middle of a write does not undo it.
        self._spawn(self._answer(tuple(news), answers), f"batch-of-{len(news)}")
        return await answers

    async def _answer(self, news: Sequence[NewRun], answers: asyncio.Future[list[Answer]]) -> None:
        try:
            found = await self._accept_all(news)
        except BaseException as exc:
            told = exc if isinstance(exc, Exception) else Draining("broken off; send the batch again", retry_after_s=1)
            if not answers.done():
                answers.set_exception(told)
                answers.exception()  # retrieved, should nobody wait any more
            if not isinstance(exc, Exception):
                raise
        else:
            if not answers.done():
                answers.set_result(found)

    async def _accept_all(self, news: Sequence[NewRun]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        left: list[int] = []
        for index, new in enumerate(news):
            joined = self._joined(new)
            if joined is None:
                left.append(index)
            else:
                answers[index] = joined
        while left:
            async with self._turn:
                room = self._max_queued - len(self._dispatcher.queue)
                now = left[: max(0, min(room, MAX_ACCEPT_MANY))]
                if now:
                    recorded = await self._record([news[index] for index in now])
                    answers.update(zip(now, recorded, strict=True))
            if not now:  # no room: what is known is answered all the same
                for index in left:
                    answers[index] = self._joined(news[index]) or await self._single(news[index])
                break
            del left[: len(now)]
        return [answers[index] for index in range(len(news))]

    def _joined(self, new: NewRun) -> Accepted | None:
        """Return the unfinished job that a request joins without changing anything of it."""
        job = self._dispatcher.active.get(new.job_id) if new.idempotency_key is None else None
        if job is None or not set(new.tags) <= set(job.tags):
            return None
        return Accepted(job=job, opened=False, claimed=False)

    async def _record(self, news: Sequence[NewRun]) -> Sequence[Answer]:
        try:
            answers = await self._ledger.accept_many(news)
        except FleetError as exc:
            return [exc] * len(news)
        for new, answer in zip(news, answers, strict=True):
            if isinstance(answer, Accepted):
                self._enter(new, answer)
        return answers

    async def _single(self, new: NewRun) -> Answer:
        try:
            return await self._without_room(new)
        except FleetError as exc:
            return exc
