"""``/v1/jobs``: showing, waiting, listing, cancelling and retrying."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.unit.server.rig import Rig, run, until

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.server.documents import rfc3339

ABSENT = "a" * 32


def problem(answer: httpx.Response, status: int, code: str) -> str:
    """Check that an answer is that problem; return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    detail: str = answer.json()["detail"]
    return detail


def test_a_job_is_shown_with_its_small_result() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.finished(7, body=b"[1,2]")
            document = (await rig.http.get(f"/v1/jobs/{job_id}")).json()
            assert document["status"] == "succeeded"
            assert document["params"] == {"n": 7}
            assert document["result"] == [1, 2]
            assert document["links"]["self"] == f"/v1/jobs/{job_id}"
            for link in document["links"].values():
                assert (await rig.http.get(link)).status_code == 200

    run(main())


def test_waiting_ends_with_the_job_or_the_time() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            start = await rig.started()
            waiting = asyncio.create_task(rig.http.get(f"/v1/jobs/{job_id}?wait=60"))
            await until(lambda: rig.controller._changes._waiters)
            assert not waiting.done()
            rig.succeed(start, b"5")
            assert (await waiting).json()["result"] == 5
            other = await rig.submit(2)
            assert (await rig.http.get(f"/v1/jobs/{other}?wait=0")).json()["status"] == "running"

    run(main())


@pytest.mark.parametrize("wait", ["-1", "61", "1.5", "x", "", "1e1", "٣", "1&wait=2"])
def test_malformed_waits(wait: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            for page in ("", "/result"):
                answer = await rig.http.get(f"/v1/jobs/{ABSENT}{page}?wait={wait}")
                assert "wait" in problem(answer, 400, "bad_request")

    run(main())


@pytest.mark.parametrize("job_id", [ABSENT, "x", "A" * 32, "a" * 33, "%00", "..", "%2e%2e", "a" * 31 + "%0a", "é"])
def test_unknown_and_malformed_ids_are_not_found(job_id: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            bodies = set()
            for method, page in [("GET", ""), ("DELETE", ""), ("POST", ":retry"), ("GET", "/result"), ("GET", "/attempts")]:
                answer = await rig.http.request(method, f"/v1/jobs/{job_id}{page}")
                problem(answer, 404, "not_found")
                bodies.add(answer.json()["code"])
            assert bodies == {"not_found"}

    run(main())


def test_cancel_names_who_and_may_be_repeated() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            bob = rig.client(rig.new_token("bob"))
            for _ in range(2):
                answer = await bob.delete(f"/v1/jobs/{job_id}")
                assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
                assert answer.json()["cancel_requested_by"] == "bob"

    run(main())


def test_cancel_of_a_running_job_is_a_wish() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            await rig.started()
            answer = await rig.http.delete(f"/v1/jobs/{job_id}")
            assert answer.status_code == 202
            assert answer.json()["cancel_requested_by"] == "ann"

    run(main())


def test_retry_opens_the_next_run_of_what_failed_and_of_nothing_else() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            rig.fail(await rig.started(), Failure(cause=Cause.EXCEPTION, message="no"))
            assert (await rig.http.get(f"/v1/jobs/{job_id}?wait=5")).json()["error"]["message"] == "no"
            answer = await rig.http.post(f"/v1/jobs/{job_id}:retry")
            assert answer.status_code == 202
            assert (answer.json()["run"], answer.json()["reason"]) == (2, "retry")
            assert answer.headers["location"] == f"/v1/jobs/{job_id}"
            rig.succeed(await rig.started(), b"1")
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            assert "refresh" in problem(await rig.http.post(f"/v1/jobs/{job_id}:retry"), 409, "conflict")

            attempts = (await rig.http.get(f"/v1/jobs/{job_id}/attempts")).json()["attempts"]
            assert [(a["run"], a["attempt"], a["status"]) for a in attempts] == [(1, 1, "failed"), (2, 2, "succeeded")]
            assert attempts[0]["error"]["cause"] == "exception"
            assert attempts[1]["error"] is None

    run(main())


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [job["job_id"] for job in answer.json()["jobs"]]


def test_listing_filters_and_pages() -> None:
    async def main() -> None:
        async with Rig() as rig:
            made = []
            for n in range(5):
                rig.clock.us += 1_000_000
                made.append(await rig.submit(n, Fleet_Tags="even" if n % 2 == 0 else "odd"))
            await rig.http.delete(f"/v1/jobs/{made[0]}")
            newest = made[::-1]

            async def listed(**query: Any) -> list[str]:
                return ids(await rig.http.get("/v1/jobs", params=query))

            assert await listed() == newest
            assert await listed(status="queued") == newest[:4]
            assert await listed(status="cancelled") == newest[4:]
            assert await listed(service="math") == newest
            assert await listed(service="math", endpoint="f") == newest
            assert await listed(service="math", endpoint="g") == []
            assert await listed(service="other") == []
            assert await listed(user="ann") == newest
            assert await listed(user="bob") == []
            assert await listed(tag="odd") == [made[3], made[1]]
            assert await listed(tag="odd", status="cancelled") == []
            edge = rfc3339(rig.clock.us - 2_000_000)
            assert sorted(await listed(created_after=edge) + await listed(created_before=edge)) == sorted(made)
            assert set(await listed(created_after=edge)) >= set(newest[:2])

            pages, query = [], {"limit": "2", "service": "math"}
            while True:
                answer = await rig.http.get("/v1/jobs", params=query)
                pages.append(ids(answer))
                if answer.json()["next_cursor"] is None:
                    break
                query["cursor"] = answer.json()["next_cursor"]
            assert [job for page in pages for job in page] == newest
            assert max(len(page) for page in pages) == 2

            cursor = (await rig.http.get("/v1/jobs?limit=2")).json()["next_cursor"]
            assert ids(await rig.http.get(f"/v1/jobs?limit=3&cursor={cursor}")) == newest[2:]
            problem(await rig.http.get(f"/v1/jobs?status=queued&cursor={cursor}"), 404, "not_found")
            problem(await rig.http.get("/v1/jobs?cursor=x"), 404, "not_found")

    run(main())


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("status=done", "status"),
        ("status=", "status"),
        ("state=queued", "state"),
        ("endpoint=f", "endpoint"),
        ("service=", "service"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=%C2%B2", "limit"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-01-01", "created_after"),
        ("created_before=2026-01-01T00:00:00", "created_before"),
        ("created_before=9999-12-31T23:59:59-23:59", ""),
        ("user=a&user=b", "user"),
        ("tag=%00", "tag"),
        ("tag=%FF", ""),
        ("tag", ""),
        ("user=" + "a" * 2000, "user"),
        ("&".join(f"x{n}=1" for n in range(100)), ""),
    ],
)
def test_malformed_filters_are_named(query: str, named: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            answer = await rig.http.get(f"/v1/jobs?{query}")
            if named or answer.status_code != 200:
                assert named in problem(answer, 400, "bad_request")

    run(main())


def test_offsets_of_times_may_lack_their_escape() -> None:
    async def main() -> None:
        async with Rig() as rig:
            assert ids(await rig.http.get("/v1/jobs?created_after=2026-01-31T12:00:00+01:00")) == []

    run(main())
