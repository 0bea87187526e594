"""P4: one result per job, even from zombies. An agent that was given up comes back and delivers what it had computed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from tests.promises.form import FULL, Record, Serve
from tests.promises.latecomers import Latecomers, thirds
from tests.promises.survivors import Survivors, living

from dask_fleet.protocol.frames import Start
from dask_fleet.testing.fake_agent import ref, succeeded
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

LATE_WRITES = 201 if FULL else 42  # a third at each of three moments
FLEETS, ROUNDS = (2, 2) if FULL else (1, 1)
"""Of real agents that are stopped past their leases."""
ZOMBIE, FENCED = b'"zombie"', b'"fenced"'


@dataclass(frozen=True)
class Verdict:
    """What came of the late writes."""

    late: int
    accepted: int
    """Jobs whose kept result is the zombie's."""
    right: int
    """Jobs whose kept result is that of the second attempt."""
    counted: int
    """``stale_outcomes`` of the status."""
    logged: int
    """``stale_epoch`` in the log."""


async def haunt(fleet: ServedFleet) -> list[str]:
    """Give attempt 1 of every job to an agent that vanishes, attempt 2 to its successor, and let the first come back.

    A third of the zombie's outcomes arrives while the job waits for attempt 2, a third while attempt 2 runs, a third after
    it has ended. Returns the ids of the jobs.
    """
    agents = Latecomers(fleet, LATE_WRITES)

    async with agents.first() as first:
        await asyncio.to_thread(
            fleet.until, lambda: any(one["versions"] for one in fleet.status()["agents"]), "the agent to be ready"
        )
        ids = await asyncio.to_thread(_post_all, fleet)
        lost = {start.seq: start for start in await first.take(Start, LATE_WRITES)}
    assert {start.attempt for start in lost.values()} == {1}
    early, between, late = thirds(sorted(lost))

    async with agents.second() as second:
        await asyncio.to_thread(fleet.until, lambda: fleet.status()["queued"] == LATE_WRITES, "the jobs to be queued again")
        async with agents.zombie(held=[ref(start) for start in lost.values()]) as zombie:
            await zombie.deliver(*(succeeded(lost[seq], ZOMBIE) for seq in early))
            # The twin has no fence: there, what the zombie could write has ended, and is not started again.
            await second.ready()
            queued = await asyncio.to_thread(_queued, fleet, ids)
            again = {start.seq: start for start in await second.take(Start, queued)}
            assert {start.attempt for start in again.values()} == {2}
            await zombie.deliver(*(succeeded(lost[seq], ZOMBIE) for seq in between))
            await second.deliver(*(succeeded(start, FENCED) for start in again.values()))
            await zombie.deliver(*(succeeded(lost[seq], ZOMBIE) for seq in late))
    return ids


def _post_all(fleet: ServedFleet) -> list[str]:
    with fleet.connect() as connection:
        answers = [connection.request("POST", "/v1/tiny/double", {"n": number}) for number in range(LATE_WRITES)]
    assert {answer.status for answer in answers} == {202}
    return [answer.json()["job_id"] for answer in answers]


def _queued(fleet: ServedFleet, ids: list[str]) -> int:
    return sum(fleet.job(job_id)["status"] in {"queued", "running"} for job_id in ids)


def judge(fleet: ServedFleet) -> Verdict:
    with fleet:
        ids = asyncio.run(haunt(fleet))
        results = [fleet.request("GET", f"/v1/jobs/{job_id}/result").body for job_id in ids]
        counted = fleet.status()["stale_outcomes"]
        fleet.terminate()
    return Verdict(
        late=len(ids),
        accepted=results.count(ZOMBIE),
        right=results.count(FENCED),
        counted=counted,
        logged=(fleet.data_dir / "serve.err").read_text().count("action=stale_epoch"),
    )


def test_no_late_write_is_accepted(serve: Serve, record_property: Record) -> None:
    verdict = judge(serve(args=("--no-agent",)))
    record_property("figures", str(verdict))
    assert verdict == Verdict(
        late=LATE_WRITES, accepted=0, right=LATE_WRITES, counted=LATE_WRITES, logged=LATE_WRITES
    )


def test_the_checker_notices_a_missing_fence(serve: Serve, record_property: Record) -> None:
    verdict = judge(serve(twin="no-fence", args=("--no-agent",)))
    record_property("figures", str(verdict))
    assert verdict.accepted > 0


def test_a_real_agent_that_slept_past_its_lease_is_refused(
    survivors: Callable[..., Survivors], record_property: Record
) -> None:
    """SIGSTOP; one of its jobs ends, one goes on; it is given up; SIGCONT: nobody takes what it delivers, what it runs ends.

    Two fleets side by side, and the agent that has come back is the next to be stopped.
    """
    fleets = [survivors(f"fleet{number}", args=("--nworkers", "2", "--orphan-timeout", "2")) for number in range(FLEETS)]
    with ThreadPoolExecutor(FLEETS) as threads:
        refused = list(threads.map(_put_to_sleep, fleets))
    record_property("figures", f"{FLEETS * ROUNDS} sleeps past the lease; outcomes refused, of each fleet: {refused}")


def _put_to_sleep(held: Survivors) -> int:
    fleet = held.fleet
    with fleet:
        for first in range(0, 2 * ROUNDS, 2):
            ends, goes_on = first, first + 1
            ids = held.start(ends, goes_on)
            zombie, refused = held.starts(goes_on)[0], fleet.status()["stale_outcomes"]
            agent = fleet.agent_pid()
            assert agent is not None
            os.kill(agent, signal.SIGSTOP)
            try:
                held.open(ends)
                # Its lease lapses 15 to 20 s after its last heartbeat.
                fleet.until(
                    lambda ids=ids: all(fleet.job(job_id)["status"] == "queued" for job_id in ids), "the loss", timeout_s=60
                )
            finally:
                os.kill(agent, signal.SIGCONT)
            held.until_started((ends, goes_on), 2)
            fleet.until(lambda zombie=zombie: zombie not in living(fleet), "the zombie's end", timeout_s=60)
            held.end((ends, goes_on), ids, attempt=2)
            for job_id in ids:
                attempts = fleet.request("GET", f"/v1/jobs/{job_id}/attempts").json()["attempts"]
                assert [attempt["status"] for attempt in attempts] == ["lost", "succeeded"]
            assert fleet.status()["stale_outcomes"] > refused
        refused = fleet.status()["stale_outcomes"]
        assert [len(held.starts(n)) for n in range(2 * ROUNDS)] == [2] * 2 * ROUNDS
    assert (fleet.data_dir / "serve.err").read_text().count("action=stale_epoch") == refused
    return int(refused)
