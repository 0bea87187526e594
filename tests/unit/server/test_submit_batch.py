"""``POST …:batch``: each set its own entry, in order; equal sets one job; one's fault no other's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import msgspec
import pytest
from tests.unit.server.rig import MANIFEST, Exchange, Rig, run, until

from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.model.jobs import JobFilter, Policy
from dask_fleet.server import submit_batch

BATCH = "/v1/math/f:batch"
NDJSON = {"Content-Type": "application/x-ndjson"}


def impure() -> Any:
    (service,) = MANIFEST.services
    (endpoint,) = service.endpoints
    changed = msgspec.structs.replace(endpoint, policy=Policy(pure=False))
    return msgspec.structs.replace(MANIFEST, services=(msgspec.structs.replace(service, endpoints=(changed,)),))


async def post(rig: Rig, sets: Any, *, query: str = "", status: int = 202, **headers: str) -> dict[str, Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await rig.http.post(BATCH + query, json=sets, headers=sent)
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    assert [item["index"] for item in document["items"]] == list(range(len(sets)))
    assert document["accepted"] + document["refused"] == len(sets)
    return document


def ids(document: dict[str, Any]) -> list[str]:
    return [item["job_id"] for item in document["items"]]


async def queued(rig: Rig) -> int:
    return (await rig.ledger.counts())["queued"]


def test_each_set_becomes_the_job_that_a_single_call_would_name() -> None:
    async def main() -> None:
        async with Rig() as rig:
            one = await rig.submit(3)
            document = await post(rig, [{"n": n} for n in range(5)])
            assert (document["accepted"], document["refused"]) == (5, 0)
            assert ids(document)[3] == one
            for n, item in enumerate(document["items"]):
                assert item == {"index": n, "job_id": item["job_id"], "status": "queued",
                                "location": f"/v1/jobs/{item['job_id']}"}
                assert (await rig.http.get(item["location"])).json()["params"] == {"n": n}
            assert await queued(rig) == 5

    run(main())


def test_lines_are_the_same_as_an_array() -> None:
    async def main() -> None:
        async with Rig() as rig:
            array = await post(rig, [{"n": 1}, {"n": 2.0}])
            lines = await rig.http.post(BATCH, content=b'{"n": 1}\r\n\n{ "n" : 2 }\n', headers=NDJSON)
            assert lines.status_code == 202
            assert lines.json() == array
            assert (await rig.http.post(BATCH, content=b"", headers=NDJSON)).json() == {
                "accepted": 0, "refused": 0, "items": []}

    run(main())


def test_what_is_wrong_with_one_set_is_its_entry() -> None:
    async def main() -> None:
        async with Rig() as rig:
            body = b'[{"n":1},{"n":"x"},7,{"n":1,"n":2},{"n":-1},{"n":2,"m":"' + b"y" * (1 << 20) + b'"},{"n":3}]'
            answer = await rig.http.post(BATCH, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 202
            items = answer.json()["items"]
            assert [item.get("error", {}).get("code") for item in items] == [
                None, "invalid_parameters", "invalid_parameters", "bad_json", "invalid_parameters", "body_too_large", None]
            assert items[1]["error"]["status"] == 422
            assert items[1]["error"]["errors"][0]["loc"] == ["n"]
            assert [set(item) for item in items[1:6]] == [{"index", "error"}] * 5
            assert await queued(rig) == 2
            nothing = await rig.http.post(BATCH, json=[{"n": "x"}])
            assert (nothing.status_code, nothing.json()["refused"]) == (200, 1)

    run(main())


def test_equal_sets_and_known_jobs_are_not_computed_again() -> None:
    async def main() -> None:
        async with Rig() as rig:
            done = await rig.finished(9)
            document = await post(rig, [{"n": 1}, {"n": 9}, {"n": 1}])
            first, known, again = document["items"]
            assert first["job_id"] == again["job_id"]
            assert (known["job_id"], known["status"]) == (done, "succeeded")
            assert (await post(rig, [{"n": 9}], status=200))["items"][0]["status"] == "succeeded"
            rig.controller.recent.drop(done)  # now from the ledger
            assert (await post(rig, [{"n": 9}], status=200))["items"][0]["job_id"] == done
            assert (await rig.http.get(f"/v1/jobs/{done}")).json()["run"] == 1
            again_run = await post(rig, [{"n": 9}, {"n": 9}], query="?refresh=true")
            assert ids(again_run) == [done, done]
            assert (await rig.http.get(f"/v1/jobs/{done}")).json()["run"] == 2

    run(main())


def test_options_stand_for_all_sets() -> None:
    async def main() -> None:
        async with Rig() as rig:
            options = {"Fleet_Priority": "7", "Fleet_Tags": "night", "Fleet_Deadline": "60"}
            document = await post(rig, [{"n": n} for n in range(3)], **options)
            for item in document["items"]:
                job = (await rig.http.get(item["location"])).json()
                assert (job["priority"], job["tags"], job["user"]) == (7, ["night"], "ann")
                assert job["deadline"] is not None
            page = await rig.ledger.list_jobs(JobFilter(tenant="default", tag="night"))
            assert len(page.jobs) == 3

    run(main())


def test_without_purity_each_set_is_a_job_and_a_key_makes_repeating_safe() -> None:
    async def main() -> None:
        async with Rig(manifest=impure()) as rig:
            sets = [{"n": 1}, {"n": 1}, {"n": 2}]
            assert len({*ids(await post(rig, sets)), *ids(await post(rig, sets))}) == 6
            once = await post(rig, sets, Idempotency_Key="k")
            assert len(set(ids(once))) == 3
            assert ids(await post(rig, sets, Idempotency_Key="k")) == ids(once)
            other = (await post(rig, [{"n": 1}, {"n": 5}, {"n": 2}], Idempotency_Key="k"))["items"]
            assert [item.get("job_id") for item in other] == [ids(once)[0], None, ids(once)[2]]
            assert other[1]["error"]["code"] == "idempotency_mismatch"
            single = await rig.http.post("/v1/math/f", json={"n": 1}, headers={"Idempotency-Key": "k"})
            assert single.json()["job_id"] not in ids(once)
            assert await queued(rig) == 10

    run(main())


def test_a_batch_of_thousands_takes_few_transactions_and_the_queue_takes_it_all() -> None:
    async def main() -> None:
        async with Rig() as rig:
            sizes: list[int] = []
            accept_many = rig.ledger.accept_many

            async def counted(news: Any) -> Any:
                sizes.append(len(news))
                return await accept_many(news)

            rig.ledger.accept_many = counted  # type: ignore[method-assign]
            await post(rig, [{"n": n} for n in range(1234)])
            assert sizes == [200] * 6 + [34]
            assert rig.controller.status()["queued"] == 1234
            rig.attach(slots=2)
            start = await rig.started()
            rig.succeed(start, b"1")
            assert (await rig.started()).seq != start.seq

    run(main())


def test_what_finds_no_room_is_refused_and_the_rest_is_not() -> None:
    async def main() -> None:
        async with Rig() as rig:
            rig.attach(slots=1)
            done = await rig.finished(99)
            rig._handle.window.given_back()  # no work ahead
            await rig.submit(98)
            await rig.started()  # it holds the only slot
            rig.controller.intake._batches._max_queued = rig.controller.intake._max_queued = 10
            rig.controller.recent.drop(done)
            document = await post(rig, [{"n": n} for n in [*range(12), 99, 3]])
            codes = [item.get("error", {}).get("code") for item in document["items"]]
            assert codes == [None] * 10 + ["queue_full"] * 2 + [None, None]
            assert document["items"][12]["job_id"] == done
            answer = await rig.http.post(BATCH, json=[{"n": 50}, {"n": 51}])
            assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "queue_full", "10")
            mixed = await rig.http.post(BATCH, json=[{"n": 50}, {"n": "x"}])
            assert (mixed.status_code, mixed.headers["retry-after"]) == (200, "10")

    run(main())


def test_a_ledger_that_fails_midway_is_told_of_the_sets_it_concerns() -> None:
    async def main() -> None:
        async with Rig() as rig:
            accept_many, calls = rig.ledger.accept_many, 0

            async def failing(news: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == 2:
                    raise LedgerUnavailable("no disk", retry_after_s=5)
                return await accept_many(news)

            rig.ledger.accept_many = failing  # type: ignore[method-assign]
            sets = [{"n": n} for n in range(500)]
            document = await post(rig, sets)
            assert (document["accepted"], document["refused"]) == (300, 200)
            assert {item["error"]["code"] for item in document["items"][200:400]} == {"ledger_unavailable"}
            calls = 1
            answer = await rig.http.post(BATCH, json=[{"n": 5000}])
            assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
            again = await post(rig, sets)  # repeated, all is there, and nothing twice
            assert again["refused"] == 0
            assert ids(again)[:200] == ids_of(document["items"][:200])
            assert await queued(rig) == 500

    run(main())


def ids_of(items: list[dict[str, Any]]) -> list[str]:
    return [item["job_id"] for item in items]


def test_a_client_that_leaves_midway_stops_nothing() -> None:
    async def main() -> None:
        async with Rig() as rig:
            body = json.dumps([{"n": n} for n in range(1500)]).encode()
            headers = [("authorization", f"Bearer {rig.token}"), ("content-type", "application/json"),
                       ("host", "127.0.0.1:8000")]
            async with Exchange(rig.app, "POST", BATCH, headers=headers, body=[body]) as exchange:
                exchange.leave()
            assert await queued(rig) == 1500

    run(main())


def test_a_caller_cancelled_midway_undoes_nothing_of_what_was_begun() -> None:
    async def main() -> None:
        async with Rig() as rig:
            held, accept_many = asyncio.Event(), rig.ledger.accept_many

            async def slow(news: Any) -> Any:
                await held.wait()
                return await accept_many(news)

            rig.ledger.accept_many = slow  # type: ignore[method-assign]
            task = asyncio.create_task(rig.http.post(BATCH, json=[{"n": 1}, {"n": 2}]))
            await until(lambda: rig.controller.intake._batches._turn.locked())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            held.set()
            await until(lambda: rig.controller.status()["queued"] == 2)

    run(main())


def test_while_draining_all_is_refused() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.controller.drain(0)
            answer = await rig.http.post(BATCH, json=[{"n": 1}])
            assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "draining", "5")

    run(main())


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"[]", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"[]", {}, 415, "unsupported_media_type"),
        (b'{"n":1}', {"Content-Type": "application/json"}, 400, "bad_json"),
        (b"[" + b'{"n":1},' * 10_000 + b'{"n":1}]', {"Content-Type": "application/json"}, 400, "bad_request"),
        (b'{"n":1}\n' * 10_001, NDJSON, 400, "bad_request"),
        (b" " * (16 << 20) + b"[]", {"Content-Type": "application/json"}, 413, "body_too_large"),
        (b"[]", {"Content-Type": "application/json", "Fleet-Priority": "x"}, 400, "bad_request"),
    ],
)
def test_what_is_wrong_with_the_whole_is_a_problem(content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            answer = await rig.http.post(BATCH, content=content, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
            assert await queued(rig) == 0

    run(main())


def test_methods_and_scopes() -> None:
    async def main() -> None:
        async with Rig() as rig:
            assert (await rig.http.get(BATCH)).status_code == 405
            assert (await rig.http.options(BATCH)).headers["allow"] == "OPTIONS, POST"
            reader = rig.client(rig.new_token("bob", scopes=frozenset({"read"})))
            assert (await reader.post(BATCH, json=[])).status_code == 403
            assert (await rig.http.post("/v1/math/g:batch", json=[])).status_code == 404

    run(main())


def test_batches_beyond_the_gate_wait_in_line() -> None:
    async def main() -> None:
        async with Rig() as rig:
            gate = rig.app._submissions[BATCH]._gate
            async with contextlib.AsyncExitStack() as full:
                for number in range(submit_batch.BATCHES_AT_ONCE):
                    await full.enter_async_context(gate.place(number))
                gate.patience_s = 0.01
                answer = await rig.http.post(BATCH, json=[{"n": 1}])
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                gate.patience_s = 30.0
                waiting = asyncio.create_task(rig.http.post(BATCH, json=[{"n": 1}]))
                await until(gate.waiting)
            assert (await waiting).status_code == 202

    run(main())


def test_a_batch_whose_body_does_not_come_keeps_nobody_from_the_gate() -> None:
    async def main() -> None:
        async with Rig() as rig, contextlib.AsyncExitStack() as stack:
            for _ in range(2 * submit_batch.BATCHES_AT_ONCE):
                exchange = Exchange(rig.app, "POST", BATCH, body=[b"["], headers=[
                    ("authorization", f"Bearer {rig.token}"), ("content-type", "application/json"),
                    ("host", "127.0.0.1:8000")])  # fmt: skip
                exchange._messages.get_nowait()
                await stack.enter_async_context(exchange)
                await until(lambda exchange=exchange: exchange.received)
            await post(rig, [{"n": 1}])

    run(main())
