"""Event streams: every event once, resumed exactly, ended with the job, freed when the client goes."""

from __future__ import annotations

import pytest
from tests.unit.server.rig import HOST, Exchange, Rig, events_of, run, until
from tests.unit.server.test_routes_jobs import problem

from dask_fleet.model.failure import Cause, Failure
from dask_fleet.server import routes_events


def stream(rig: Rig, target: str, **headers: str) -> Exchange:
    sent = [("host", HOST), ("authorization", f"Bearer {rig.token}")]
    return Exchange(rig.app, "GET", target, headers=[*sent, *((k.replace("_", "-"), v) for k, v in headers.items())])


def test_the_whole_story_of_a_job_with_progress_in_between() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            start = await rig.started()
            async with stream(rig, f"/v1/jobs/{job_id}/events") as exchange:
                await exchange.contains(b"event: started")
                for done in (1, 2):
                    rig.progress(start, done, 3, "counting")
                    await exchange.contains(b'"done":%d' % done)
                rig.succeed(start, b"1")
                blocks = events_of(await exchange.whole())
            assert exchange.headers["content-type"].startswith("text/event-stream")
            assert exchange.headers["cache-control"] == "no-store"
            assert blocks[0] == {"retry": "2000"}
            assert [block["event"] for block in blocks[1:]] == ["accepted", "started", "progress", "progress", "succeeded"]
            ids = [int(block["id"]) for block in blocks if "id" in block]
            assert ids == sorted(set(ids))
            told = blocks[2]["data"]
            assert (told["event_id"], told["kind"], told["run"], told["attempt"]) == (ids[1], "started", 1, 1)
            assert told["at"].endswith("Z")
            assert blocks[3]["data"] == {"run": 1, "attempt": 1, "done": 1, "total": 3, "text": "counting"}
            assert "id" not in blocks[3]

    run(main())


def test_resuming_after_each_event_gives_exactly_the_rest() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            rig.fail(await rig.started(), Failure(cause=Cause.EXCEPTION, message="no"))
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            await rig.http.post(f"/v1/jobs/{job_id}:retry")
            rig.succeed(await rig.started(), b"1")
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            link = f"/v1/jobs/{job_id}/events"
            everything = events_of((await rig.http.get(link)).content)[1:]
            kinds = [block["event"] for block in everything]
            assert kinds == ["accepted", "started", "failed", "reopened", "started", "succeeded"]
            for number, block in enumerate(everything[:-1], 1):
                for answer in (
                    await rig.http.get(link, headers={"Last-Event-ID": block["id"]}),
                    await rig.http.get(f"{link}?after={block['id']}"),
                    # The header is newer than the address.
                    await rig.http.get(f"{link}?after=0", headers={"Last-Event-ID": block["id"]}),
                ):
                    assert events_of(answer.content)[1:] == everything[number:]
            # Nothing is left to tell: a browser must not come back for ever.
            assert (await rig.http.get(link, headers={"Last-Event-ID": everything[-1]["id"]})).status_code == 204

    run(main())


def test_a_stream_that_resumes_waits_for_what_comes() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            job = await rig.ledger.get(job_id)
            assert job is not None
            (event,) = await rig.ledger.events(job.seq)
            async with stream(rig, f"/v1/jobs/{job_id}/events?after={event.event_id}") as exchange:
                await exchange.contains(b"retry: 2000")
                assert b"accepted" not in exchange.data
                await rig.http.delete(f"/v1/jobs/{job_id}")
                assert [block.get("event") for block in events_of(await exchange.whole())] == [None, "cancelled"]

    run(main())


def test_a_silent_stream_is_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_events, "PING_S", 0.01)

    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            async with stream(rig, f"/v1/jobs/{job_id}/events") as exchange:
                await exchange.contains(b": ping\n\n: ping\n\n")

    run(main())


def test_a_client_that_leaves_frees_everything() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            for _ in range(3):
                async with stream(rig, f"/v1/jobs/{job_id}/events") as exchange:
                    await exchange.contains(b"accepted")
                    await until(lambda: rig.controller._changes._subscriptions)
                assert not rig.controller._changes._subscriptions

    run(main())


def test_streams_are_bounded_and_a_closed_one_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_events, "MAX_STREAMS", 1)

    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            link = f"/v1/jobs/{job_id}/events"
            async with stream(rig, link) as exchange:
                await exchange.contains(b"accepted")
                answer = await rig.http.get(link)
                problem(answer, 503, "unavailable")
                assert int(answer.headers["retry-after"]) > 0
            await rig.http.delete(f"/v1/jobs/{job_id}")
            assert (await rig.http.get(link)).status_code == 200

    run(main())


def test_head_opens_no_stream() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            answer = await rig.http.head(f"/v1/jobs/{job_id}/events")
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert not rig.controller._changes._subscriptions

    run(main())


@pytest.mark.parametrize("value", ["x", "-1", "1.0", "9" * 30, "1\u0663"])
def test_malformed_ids_of_events(value: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            problem(await rig.http.get(f"/v1/jobs/{job_id}/events", params={"after": value}), 400, "bad_request")

    run(main())


def test_the_story_as_text_and_as_json() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach()
            job_id = await rig.submit()
            rig.fail(await rig.started(), Failure(cause=Cause.EXCEPTION, message="no", type="ValueError"))
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            link = f"/v1/jobs/{job_id}/events"
            text = await rig.http.get(link, headers={"Accept": "text/plain"})
            assert text.headers["content-type"] == "text/plain; charset=utf-8"
            lines = text.text.splitlines()
            assert lines[0] == f"math.f, job {job_id} of ann: failed"
            assert lines[2].endswith("accepted from ann (priority 0)")
            assert lines[4].endswith("raised ValueError: no after 0 ms (exception 1, retries: 0); the job failed")
            assert lines[5] == "It failed of exception."
            document = (await rig.http.get(link, headers={"Accept": "application/json"})).json()
            assert (document["job_id"], document["status"]) == (job_id, "failed")
            assert [event["kind"] for event in document["events"]] == ["accepted", "started", "failed"]
            assert document["events"][2]["text"] in lines[4]
            assert (document["standing"], document["cure"]) == tuple(lines[5:7])
            # The stream tells the same, also to who comes in the middle.
            for after in (0, document["events"][1]["event_id"]):
                blocks = events_of((await rig.http.get(f"{link}?after={after}")).content)[1:]
                assert [block["data"] for block in blocks] == [one for one in document["events"] if one["event_id"] > after]
            last = document["events"][-1]["event_id"]
            rest = await rig.http.get(f"{link}?after={last}", headers={"Accept": "application/json"})
            assert (rest.status_code, rest.json()["events"]) == (200, [])
            problem(await rig.http.get(link, headers={"Accept": "image/png"}), 406, "not_acceptable")
            assert (await rig.http.get(link, headers={"Accept": "*/*"})).headers["content-type"].startswith("text/event")

    run(main())


def test_the_story_of_a_job_that_waits_or_runs() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit()
            link, plain = f"/v1/jobs/{job_id}/events", {"Accept": "text/plain"}
            assert (await rig.http.get(link, headers=plain)).text.endswith("It waits for an agent: none is connected.\n")
            rig.attach()
            start = await rig.started()
            rig.progress(start, 3, 10, "rows")
            assert "for 0 ms, at 3 of 10 rows.\n" in (await rig.http.get(link, headers=plain)).text
            rig.succeed(start, b"1")
            await rig.http.get(f"/v1/jobs/{job_id}?wait=5")
            assert "It succeeded; its result is kept until " in (await rig.http.get(link, headers=plain)).text

    run(main())
