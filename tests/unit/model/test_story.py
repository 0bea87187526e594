"""Stories of jobs, word for word, told from what a real ledger has kept of them."""

# ruff: noqa: E501 - stories stand here as they are told

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.server.rig import HandClock

from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.model import story
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import AttemptEnd, JobRecord, NewRun, Policy, StoredResult
from dask_fleet.model.states import AttemptState, RunEvent

START_US = int(datetime(2026, 1, 31, 6, 12, 3, 120_000, tzinfo=UTC).timestamp() * 1e6)
RESULT = StoredResult(media_type="application/json", digest="d", size=1, body=b"1")


class Scene:
    """A job on a ledger, and time that moves by hand."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.clock.us = START_US
        self.ledger = MemoryLedger(clock=self.clock)
        self.job: JobRecord

    def later(self, seconds: float) -> None:
        self.clock.us += round(seconds * 1e6)

    async def asked(self, by: str = "ana", **rest: Any) -> None:
        policy = rest.pop("policy", Policy(retries=3, cache_s=3600))
        new = NewRun(job_id="j1", tenant="t", service="math", endpoint="f", version="1", params=b"{}", user=by,
                     policy=policy, **rest)
        self.job = (await self.ledger.accept(new)).job

    async def started(self, after_s: float = 0.5, agent: str = "local-7") -> None:
        self.later(after_s)
        job = await self.ledger.claim(self.job.seq, self.job.run, agent=agent)
        assert job is not None
        self.job = job

    async def ended(self, state: AttemptState, event: RunEvent, failure: Failure | None = None, *, after_s: float = 2.0,
                    wait_s: float = 0.0, **charges: bool) -> None:
        self.later(after_s)
        now_us = self.clock.us
        job = await self.ledger.finish(
            AttemptEnd(
                seq=self.job.seq, run=self.job.run, attempt=self.job.attempt, attempt_state=state, run_event=event, worker="w1",
                finished_us=now_us, failure=failure, result=RESULT if event is RunEvent.SUCCEED else None,
                not_before_us=now_us + int(wait_s * 1e6) if wait_s else 0, **charges,
            )
        )
        assert job is not None
        self.job = job

    async def failed(self, cause: Cause, message: str, event: RunEvent, **rest: Any) -> None:
        state = AttemptState.LOST if cause.is_death or cause is Cause.AGENT_LOST else AttemptState.FAILED
        await self.ended(state, event, Failure(cause=cause, message=message, type=rest.pop("type", "")), **rest)

    async def succeeded(self, after_s: float = 2.0) -> None:
        await self.ended(AttemptState.SUCCEEDED, RunEvent.SUCCEED, after_s=after_s)

    async def text(self, **now: Any) -> str:
        lines = story.tell(self.job, await self.ledger.events(self.job.seq), await self.ledger.attempts(self.job.seq))
        stands = story.standing(self.job, now_us=self.clock.us, **now)
        return story.as_text(lines, title="math.f", now=stands, cure=story.cure(self.job))


Play = Callable[[Scene], Awaitable[dict[str, Any] | None]]
STORIES: dict[str, tuple[Play, str]] = {}


def tells(text: str) -> Callable[[Play], Play]:
    def keep(play: Play) -> Play:
        STORIES[play.__name__] = (play, text)
        return play

    return keep


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 succeeded after 2 s
It succeeded; its result is kept until 2026-01-31 07:12:05Z.
""")
async def plain_success(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.succeeded()


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 7, to be started by 2026-01-31 06:13:03Z)
It waits for a slot: all 2 are busy.
""")
async def waiting(scene: Scene) -> dict[str, Any]:
    await scene.asked(priority=7, deadline_us=START_US + 60_000_000)
    return {"waiting_for": "a slot: all 2 are busy"}


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
Attempt 1 has been running on agent local-7 for 12 s, at 3 of 10 rows.
""")
async def running(scene: Scene) -> dict[str, Any]:
    await scene.asked()
    await scene.started()
    scene.later(12)
    return {"progress": "3 of 10 rows"}


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 raised LookupError: nothing there after 2 s (exception 1, retries: 1); next attempt in 1.2 s
  06:12:06.820     +1.2 s  attempt 2 started on agent local-7
  06:12:08.820       +2 s  attempt 2 raised LookupError: nothing there after 2 s (exception 2, retries: 1); the job failed
It failed of exception.
Its traceback is in the job's error. Mend the function, then retry the job; if the fault passes by itself, let Fleet try again with \
`retries=` of the endpoint.
""")
async def exceptions(scene: Scene) -> None:
    await scene.asked(policy=Policy(retries=1))
    await scene.started()
    await scene.failed(Cause.EXCEPTION, "nothing there\nat all", RunEvent.REQUEUE, type="LookupError", wait_s=1.2)
    await scene.started(1.2)
    await scene.failed(Cause.EXCEPTION, "nothing there", RunEvent.FAIL, type="LookupError")


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 after 2 s: the worker process was killed by SIGSEGV while it ran 3 other jobs; other jobs ran \
there too: nobody is charged, it runs alone from now on; it waits for a slot again
  06:12:06.120    +500 ms  attempt 2 started on agent local-7, alone in its worker process
  06:12:08.120       +2 s  attempt 2 after 2 s: the worker process was killed by SIGSEGV; it was alone there, so it is charged \
(1 of 2); next attempt in 50 ms
  06:12:08.620    +500 ms  attempt 3 started on agent local-7, alone in its worker process
  06:12:10.620       +2 s  attempt 3 after 2 s: the worker process was killed by SIGSEGV; it was alone there, so it is charged \
(2 of 2); the job failed
It failed of worker_died.
Look for native code that crashes, os._exit and the kernel's out-of-memory killer (`dmesg`); the job's logs may hold its last words. \
Then retry the job: it runs alone.
""")
async def deaths(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.failed(Cause.WORKER_DIED, "the worker process was killed by SIGSEGV while it ran 3 other jobs", RunEvent.REQUEUE,
                       counts_as_loss=True, makes_suspect=True)
    await scene.started()
    killed = "the worker process was killed by SIGSEGV"
    await scene.failed(Cause.WORKER_DIED, killed, RunEvent.REQUEUE, counts_as_death=True, makes_suspect=True, wait_s=0.05)
    await scene.started()
    await scene.failed(Cause.WORKER_DIED, killed, RunEvent.FAIL, counts_as_death=True, makes_suspect=True)


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 after 2 s: the worker process was killed at 95 % of its memory limit (peak 3.8 GiB); it was alone \
there, so it is charged (1 of 2); it waits for a slot again
  06:12:06.120    +500 ms  attempt 2 started on agent local-7, alone in its worker process
  06:12:08.120       +2 s  attempt 2 after 2 s: again; it was alone there, so it is charged (2 of 2); the job failed
It failed of memory_limit.
Give the call less to do, or worker processes more memory (`--memory-limit`, or fewer `--nworkers`), then retry the job.
""")
async def memory(scene: Scene) -> None:
    charges = {"counts_as_death": True, "counts_as_memory_kill": True, "makes_suspect": True}
    await scene.asked()
    await scene.started()
    text = "the worker process was killed at 95 % of its memory limit (peak 3.8 GiB)"
    await scene.failed(Cause.MEMORY_LIMIT, text, RunEvent.REQUEUE, **charges)
    await scene.started()
    await scene.failed(Cause.MEMORY_LIMIT, "again", RunEvent.FAIL, **charges)


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 after 2 s: the worker process was killed for another attempt's time-out; nobody is charged; \
it waits for a slot again
It waits for its turn.
""")
async def innocent(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.failed(Cause.WORKER_DIED, "the worker process was killed for another attempt's time-out", RunEvent.REQUEUE,
                       counts_as_loss=True)


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:18.620      +15 s  attempt 1 was lost after 15 s: its agent was not heard of for 15 s (fault of the machinery 1, 3 are \
forgiven); next attempt in 50 ms
  06:12:19.120    +500 ms  attempt 2 started on agent remote-9
  06:12:21.120       +2 s  attempt 2 succeeded after 2 s
It succeeded; its result is kept until 2026-01-31 07:12:21Z.
""")
async def lost_agent(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.failed(Cause.AGENT_LOST, "its agent was not heard of for 15 s", RunEvent.REQUEUE, after_s=15, wait_s=0.05,
                       counts_as_fault=True)
    await scene.started(agent="remote-9")
    await scene.succeeded()


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 was given back by its agent: nobody is charged; it waits for a slot again
It waits for an agent: none is connected.
""")
async def given_back(scene: Scene) -> dict[str, Any]:
    await scene.asked()
    await scene.started()
    await scene.ended(AttemptState.LOST, RunEvent.REQUEUE)
    return {"waiting_for": "an agent: none is connected"}


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:04.620       +1 s  bo asked to cancel it: attempt 1 was told to stop
  06:12:06.620       +2 s  cancelled by bo
It was cancelled by bo; it can be retried.
""")
async def cancelled_while_running(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    scene.later(1)
    job = await scene.ledger.request_cancel(scene.job.seq, 1, by="bo")
    assert job is not None
    scene.job = job
    await scene.ended(AttemptState.CANCELLED, RunEvent.CANCEL)


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0)
  06:12:04.120       +1 s  cancelled by bo
It was cancelled by bo; it can be retried.
""")
async def cancelled_while_queued(scene: Scene) -> None:
    await scene.asked()
    scene.later(1)
    job = await scene.ledger.request_cancel(scene.job.seq, 1, by="bo")
    assert job is not None
    scene.job = job


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana (priority 0, to be started by 2026-01-31 06:13:03Z)
  06:13:04.120      +61 s  expired: it had not started by its deadline 2026-01-31 06:13:03Z
It expired before it could start; it can be retried, without a deadline.
""")
async def expired(scene: Scene) -> None:
    await scene.asked(deadline_us=START_US + 60_000_000)
    scene.later(61)
    job = await scene.ledger.expire(scene.job.seq, 1)
    assert job is not None
    scene.job = job


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 ran into its time-out after 2 s: it ran past 2 s; the job failed
2026-02-01 (UTC)
  06:12:05.620      +24 h  asked for again by bo: run 2, a retry (priority 0)
  06:12:06.120    +500 ms  attempt 2 started on agent local-7
  06:12:08.120       +2 s  attempt 2 returned what cannot be kept after 2 s: no codec takes a socket; the job failed
It failed of result_not_serializable.
Return one of the types that the message names, then retry the job.
""")
async def retried(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.failed(Cause.TIMEOUT, "it ran past 2 s", RunEvent.FAIL)
    scene.later(86_400)
    scene.job = (await scene.ledger.reopen(scene.job.seq, by="bo")).job
    await scene.started()
    await scene.failed(Cause.RESULT_NOT_SERIALIZABLE, "no codec takes a socket", RunEvent.FAIL)


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 succeeded after 2 s
  06:12:05.620      +0 ms  asked for again by bo: run 2, a refresh, while the result there was stays served (priority 0)
  06:12:06.120    +500 ms  attempt 2 started on agent local-7
  06:12:08.120       +2 s  attempt 2 could not keep its result after 2 s: the result store is full (fault of the machinery 1, 3 are \
forgiven); the job failed
It failed of result_store_full.
Free space where the data folder lies, then retry the job.
""")
async def refreshed(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.succeeded()
    await scene.asked("bo", refresh=True)
    await scene.started()
    await scene.failed(Cause.RESULT_STORE_FULL, "the result store is full", RunEvent.FAIL, counts_as_fault=True)


@tells("""math.f
2026-01-31 (UTC)
  06:12:03.120             accepted from ana
  06:12:03.620    +500 ms  attempt 1 started on agent local-7
  06:12:05.620       +2 s  attempt 1 after 2 s: it ended with exit code 3; it was alone there, so it is charged (1 of 2); the job failed
  06:12:05.620      +0 ms  asked for again by ana: run 2, as no result of it was kept (priority 0)
  06:12:06.120    +500 ms  attempt 2 started on agent local-7, alone in its worker process
  06:12:08.120       +2 s  attempt 2 succeeded after 2 s
It succeeded; its result is no longer kept. Call it again to compute it anew.
""")
async def asked_again_after_a_death(scene: Scene) -> None:
    await scene.asked()
    await scene.started()
    await scene.failed(Cause.WORKER_DIED, "it ended with exit code 3", RunEvent.FAIL, counts_as_death=True, makes_suspect=True)
    await scene.asked()
    await scene.started()
    await scene.succeeded()
    scene.later(4_000)
    await scene.ledger.purge_results()
    job = await scene.ledger.get("j1")
    assert job is not None
    scene.job = job


@pytest.mark.parametrize("name", list(STORIES))
def test_the_story_word_for_word(name: str) -> None:
    play, told = STORIES[name]

    async def main() -> None:
        scene = Scene()
        await scene.ledger.open()
        now = await play(scene) or {}
        assert await scene.text(**now) == told
        # Told one by one, as a stream does, it is the same; so it is from any place on.
        events = await scene.ledger.events(scene.job.seq)
        whole = story.tell(scene.job, events, await scene.ledger.attempts(scene.job.seq))
        teller = story.Teller(scene.job)
        for number, event in enumerate(events):
            if number == len(events) // 2:
                teller.learn(scene.job, await scene.ledger.attempts(scene.job.seq))
            line = teller.line(event)
            assert number < len(events) // 2 or line == whole[number]
        await scene.ledger.close()

    asyncio.run(main())


def test_every_cause_has_a_cure() -> None:
    assert set(story.CURES) == set(Cause)


def test_a_message_of_any_length_is_a_line() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.ledger.open()
        await scene.asked()
        await scene.started()
        await scene.failed(Cause.EXCEPTION, "x" * 4_000 + "\n" + "y" * 10, RunEvent.FAIL)
        text = await scene.text()
        assert len(text) < 1_000
        assert "…" in text

    asyncio.run(main())
