"""A batch that the server's death has cut short is sent again: the same jobs, none lost, none run twice."""

from __future__ import annotations

import http.client
import random
import threading
import time

import pytest
from tests.promises.form import FULL, Record, Serve
from tests.promises.ledger_audit import audit, count_jobs

from dask_fleet.model.states import RunState
from dask_fleet.testing.served import Answer, ServedFleet

pytestmark = pytest.mark.promise

SETS = 5_000 if FULL else 1_500
CUTS = 8 if FULL else 2
"""Batches that are to be cut short."""
MOST_KILLS = 10 * CUTS
SEED = 20260102


def post(fleet: ServedFleet, begin: int) -> Answer:
    body = b"".join(b'{"n":%d}\n' % n for n in range(begin, begin + SETS))
    return fleet.request("POST", "/v1/tiny/double:batch", body, headers={"Content-Type": "application/x-ndjson"})


def kill_within(fleet: ServedFleet, begin: int, delay_s: float) -> Answer | None:
    """Send a batch, kill the server meanwhile and start it again; return the answer if it came before."""
    answers: list[Answer] = []

    def send() -> None:
        try:
            answers.append(post(fleet, begin))
        except (OSError, http.client.HTTPException):
            return

    sender = threading.Thread(target=send, name="batch")
    sender.start()
    time.sleep(delay_s)  # the fault's random moment, not a wait for anything
    fleet.kill9()
    sender.join(60)
    fleet.restart()
    return answers[0] if answers else None


def test_a_batch_cut_short_is_sent_again(serve: Serve, record_property: Record) -> None:
    rng = random.Random(SEED)
    cut = kills = 0
    names: dict[int, str] = {}
    with serve() as fleet:
        while cut < CUTS and kills < MOST_KILLS:
            before = kill_within(fleet, kills * SETS, rng.uniform(0.01, 0.15))
            answer = post(fleet, kills * SETS)
            assert answer.status in {200, 202}, answer.body[:500]
            document = answer.json()
            assert (document["accepted"], document["refused"]) == (SETS, 0)
            ids = [item["job_id"] for item in document["items"]]
            if before is None:
                cut += 1
            else:
                assert [item["job_id"] for item in before.json()["items"]] == ids
            names.update({kills * SETS + index: job_id for index, job_id in enumerate(ids)})
            kills += 1
        fleet.until(lambda: not (fleet.status()["queued"] or fleet.status()["running"]), "all jobs to end", timeout_s=180)
        fleet.terminate()
    record_property("figures", f"{cut} of {kills} batches of {SETS} cut short")
    assert cut >= CUTS, "no kill came in time"
    books = audit(fleet.data_dir, names.values())
    assert count_jobs(fleet.data_dir) == len(set(names.values())) == kills * SETS
    wrong = [
        n
        for n, job_id in names.items()
        if (books[job_id].job.state, books[job_id].job.run, books[job_id].result) != (RunState.SUCCEEDED, 1, b"%d" % (2 * n))
    ]
    assert not wrong
