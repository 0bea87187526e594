"""``/v1/jobs/{id}/result``: forms, conditions, parts, and why there is none."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from tests.unit.server.rig import Rig, run, until
from tests.unit.server.test_routes_jobs import problem

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.jobs import StoredResult
from dask_fleet.model.states import AttemptState
from dask_fleet.server.routes_results import forms_of, safe_media_type

ARROW = "application/vnd.apache.arrow.stream"


def result(media_type: str, *, json: bytes | None = None) -> StoredResult:
    return StoredResult(media_type=media_type, digest="d", size=1, body=b"x", json=json)


@pytest.mark.parametrize(
    ("stored", "forms"),
    [
        (result("application/json"), ["application/json"]),
        (result(ARROW, json=b"[]"), ["application/json", ARROW]),
        (result(ARROW), ["application/json", ARROW]),
        (result("application/x-npy"), ["application/json", "application/x-npy"]),
        (result("text/plain; charset=utf-8"), ["application/json", "text/plain; charset=utf-8"]),
        (result("image/png", json=b"{}"), ["image/png", "application/json"]),
        (result("application/octet-stream"), ["application/octet-stream", "application/json"]),
        (result("application/x-netcdf"), ["application/x-netcdf"]),
        (result("application/x-netcdf", json=b"{}"), ["application/json", "application/x-netcdf"]),
    ],
)
def test_forms(stored: StoredResult, forms: list[str]) -> None:
    assert [form.media_type for form in forms_of(stored)] == forms


@pytest.mark.parametrize("media_type", ["text/html\r\nx: y", "", "html", "text/html; a=b; c=d", "é/x", "a/b\n"])
def test_a_workers_media_type_cannot_break_a_header(media_type: str) -> None:
    assert safe_media_type(media_type) == "application/octet-stream"


def test_the_form_follows_accept() -> None:
    async def main() -> None:
        async with Rig() as rig:
            link = f"/v1/jobs/{await rig.finished(body=b'arrow', media_type=ARROW, json=b'[1]')}/result"
            digest = hashlib.sha256(b"arrow").hexdigest()
            plain = await rig.http.get(link)
            assert (plain.content, plain.headers["content-type"]) == (b"[1]", "application/json")
            assert plain.headers["etag"] == f'"{digest}-json"'
            stored = await rig.http.get(link, headers={"Accept": ARROW})
            assert (stored.content, stored.headers["content-type"]) == (b"arrow", ARROW)
            assert stored.headers["etag"] == f'"{digest}"'
            assert stored.headers["content-length"] == "5"
            for answer in (plain, stored):
                assert answer.headers["vary"] == "Accept"
                assert answer.headers["content-disposition"].startswith("attachment; filename=")
                assert answer.headers["content-security-policy"].startswith("sandbox")
            refused = await rig.http.get(link, headers={"Accept": "text/html"})
            problem(refused, 406, "not_acceptable")
            assert refused.json()["available"] == ["application/json", ARROW]

    run(main())


def test_head_says_what_get_would_without_the_body() -> None:
    async def main() -> None:
        async with Rig() as rig:
            link = f"/v1/jobs/{await rig.finished(body=b'0123456789')}/result"
            get, head = await rig.http.get(link), await rig.http.head(link)
            assert head.content == b""
            assert dict(head.headers) == dict(get.headers)
            # HEAD knows no ranges.
            assert (await rig.http.head(link, headers={"Range": "bytes=0-1"})).status_code == 200

    run(main())


def test_conditions() -> None:
    async def main() -> None:
        async with Rig() as rig:
            link = f"/v1/jobs/{await rig.finished(body=b'123')}/result"
            etag = (await rig.http.get(link)).headers["etag"]
            for value in (etag, f'"x", {etag}', f"W/{etag}", "*"):
                answer = await rig.http.get(link, headers={"If-None-Match": value})
                assert (answer.status_code, answer.content) == (304, b"")
                assert answer.headers["etag"] == etag
            assert (await rig.http.get(link, headers={"If-None-Match": '"other"'})).status_code == 200
            assert (await rig.http.get(link, headers={"If-Match": etag})).status_code == 200
            for value in ('"other"', f"W/{etag}"):
                problem(await rig.http.get(link, headers={"If-Match": value}), 412, "precondition_failed")

    run(main())


def test_parts_of_inline_and_of_stored_bytes(tmp_path: Path) -> None:
    body = bytes(range(256)) * 20

    async def main() -> None:
        async with Rig(spool=tmp_path) as rig:
            inline = await rig.finished(body=body, media_type="application/octet-stream")
            kept = await rig.stored(tmp_path, body)
            for job_id in (inline, kept):
                link = f"/v1/jobs/{job_id}/result"
                whole = await rig.http.get(link)
                assert (whole.status_code, whole.content) == (200, body)
                assert whole.headers["accept-ranges"] == "bytes"
                etag = whole.headers["etag"]
                answer = await rig.http.get(link, headers={"Range": "bytes=10-19"})
                assert (answer.status_code, answer.content) == (206, body[10:20])
                assert answer.headers["content-range"] == f"bytes 10-19/{len(body)}"
                assert answer.headers["content-length"] == "10"
                assert (await rig.http.get(link, headers={"Range": "bytes=-7"})).content == body[-7:]
                assert (await rig.http.get(link, headers={"Range": "bytes=0-1,4-5"})).content == body
                kept_part = await rig.http.get(link, headers={"Range": "bytes=0-1", "If-Range": etag})
                assert kept_part.status_code == 206
                changed = await rig.http.get(link, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
                assert (changed.status_code, changed.content) == (200, body)
                outside = await rig.http.get(link, headers={"Range": f"bytes={len(body)}-"})
                problem(outside, 416, "range_not_satisfiable")
                assert outside.headers["content-range"] == f"bytes */{len(body)}"

    run(main())


def test_damaged_bytes_are_never_served(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(spool=tmp_path) as rig:
            link = f"/v1/jobs/{await rig.stored(tmp_path, b'good bytes')}/result"
            (location,) = rig.results._bytes
            rig.results._bytes[location] = b"evil bytes"
            for headers in ({}, {"Range": "bytes=0-1"}, {"Accept": "application/json"}):
                answer = await rig.http.get(link, headers=headers)
                problem(answer, 500, "result_corrupt")
                assert b"evil" not in answer.content
            del rig.results._bytes[location]
            problem(await rig.http.get(link), 500, "result_corrupt")
            rig.results._bytes[location] = b"good bytes"
            assert (await rig.http.get(link)).content == b"good bytes"

    run(main())


def test_a_large_result_is_rendered_by_the_helper(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(spool=tmp_path) as rig:
            body = b"words, " * 10
            link = f"/v1/jobs/{await rig.stored(tmp_path, body, media_type='text/plain; charset=utf-8')}/result"
            answer = await rig.http.get(link)
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == body.decode()
            assert (await rig.http.head(link)).status_code == 200

    run(main())


def test_unfinished_failed_cancelled_and_expired_jobs_have_none() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach(slots=1)
            running = await rig.submit(1)
            start = await rig.started()
            answer = await rig.http.get(f"/v1/jobs/{running}/result")
            assert (answer.status_code, answer.json()["status"]) == (202, "running")
            assert answer.headers["location"] == f"/v1/jobs/{running}"
            assert answer.headers["retry-after"] == "1"

            cancelled = await rig.submit(2)
            await rig.http.delete(f"/v1/jobs/{cancelled}")
            problem(await rig.http.get(f"/v1/jobs/{cancelled}/result"), 409, "job_cancelled")

            expired = await rig.submit(3, Fleet_Deadline="1")
            waiting = asyncio.create_task(rig.http.get(f"/v1/jobs/{expired}/result?wait=10"))
            rig.clock.us += 2_000_000
            job = await rig.ledger.get(expired)
            assert job is not None
            ended = await rig.ledger.expire(job.seq, job.run)
            assert ended is not None
            rig.controller._dispatcher.untrack(ended)
            rig.controller._changes.publish(ended)
            problem(await waiting, 409, "job_expired")

            rig.fail(start, Failure(cause=Cause.TIMEOUT, message="too slow"))
            answer = await rig.http.get(f"/v1/jobs/{running}/result?wait=5")
            assert problem(answer, 409, "job_failed") == "too slow"
            assert answer.json()["failure"]["cause"] == "timeout"

    run(main())


def test_waiting_for_a_result() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            start = await rig.started()
            waiting = asyncio.create_task(rig.http.get(f"/v1/jobs/{job_id}/result?wait=60"))
            await until(lambda: rig.controller._changes._waiters)
            rig.succeed(start, b"42")
            assert (await waiting).json() == 42

    run(main())


def test_a_refresh_goes_on_serving_the_old_result_until_it_ends() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.finished(body=b'"old"')
            assert await rig.submit(query="?refresh=true") == job_id
            start = await rig.started()
            answer = await rig.http.get(f"/v1/jobs/{job_id}/result")
            assert (answer.json(), answer.headers["fleet-run"]) == ("old", "1")
            rig.succeed(start, b'"new"')
            answer = await rig.http.get(f"/v1/jobs/{job_id}/result?wait=5")
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            answer = await rig.http.get(f"/v1/jobs/{job_id}/result")
            assert (answer.json(), answer.headers["fleet-run"]) == ("new", "2")

            await rig.submit(query="?refresh=true")
            rig.end(await rig.started(), AttemptState.FAILED, failure=Failure(cause=Cause.EXCEPTION, message="broke"))
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            problem(await rig.http.get(f"/v1/jobs/{job_id}/result"), 409, "job_failed")

    run(main())


def test_a_result_is_gone_after_its_time() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.finished(body=b"1")
            rig.clock.us += 3600 * 1_000_000
            answer = await rig.http.get(f"/v1/jobs/{job_id}/result")
            assert "POST" in problem(answer, 410, "result_expired")
            assert json.loads(answer.content)["status"] == 410

    run(main())
