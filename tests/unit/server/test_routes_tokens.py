"""Tokens over HTTP: made once, listed without themselves, revoked for good - and what an ended one has open ends."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.rig import HOST, Exchange, Rig, run, until
from tests.unit.server.test_auth import mutants
from tests.unit.server.test_routes_jobs import problem

from dask_fleet.model.errors import Unauthorized
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.server.auth import digest
from dask_fleet.server.tokens import ensure_tokens

DAY_US = 86_400 * 1_000_000


def admin_of(rig: Rig, *, tenant: str = "default") -> Any:
    return rig.client(rig.new_token("root", tenant=tenant, scopes=frozenset({"admin"})))


async def made(client: Any, **document: Any) -> dict[str, Any]:
    answer = await client.post("/v1/tokens", json={"user": "bob", "scopes": ["read"], **document})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_token_is_made_used_listed_and_revoked() -> None:
    async def main() -> None:
        async with Rig() as rig:
            admin = admin_of(rig)
            token = await made(admin, scopes=["submit", "read"])
            assert token["tenant"] == "default"
            assert token["scopes"] == ["read", "submit"]
            bob = rig.client(token["token"])
            assert (await bob.post("/v1/math/f", json={"n": 1})).json()["user"] == "bob"
            (kept,) = [one for one in await rig.ledger.tokens() if one.token_id == token["token_id"]]
            assert kept.digest == digest(token["token"])
            assert kept.expires_us == kept.created_us + 90 * DAY_US
            answer = await admin.get("/v1/tokens")
            assert token["token"] not in answer.text
            assert kept.digest.hex() not in answer.text
            listed = {one["token_id"]: one for one in answer.json()["tokens"]}
            assert listed[token["token_id"]] == {name: value for name, value in token.items() if name != "token"}
            revoked = (await admin.delete(f"/v1/tokens/{token['token_id']}")).json()
            assert revoked["revoked_at"] is not None
            problem(await bob.get("/v1/jobs"), 401, "unauthorized")
            rig.clock.us += 5
            assert (await admin.delete(f"/v1/tokens/{token['token_id']}")).json() == revoked

    run(main())


def test_how_long_a_token_lives() -> None:
    async def main() -> None:
        async with Rig() as rig:
            admin = admin_of(rig)
            assert (await made(admin, expires="never"))["expires_at"] is None
            short = await made(admin, expires="90m")
            client = rig.client(short["token"])
            rig.clock.us += 5_400_000_000 - 1
            assert (await client.get("/v1/jobs")).status_code == 200
            rig.clock.us += 1
            problem(await client.get("/v1/jobs"), 401, "unauthorized")
            # Neither a clock that is set back nor another token revives it.
            rig.clock.us -= 5_000_000_000
            problem(await client.get("/v1/jobs"), 401, "unauthorized")
            await made(admin)
            problem(await client.get("/v1/jobs"), 401, "unauthorized")

    run(main())


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"user": "bob"},
        {"user": "bob", "scopes": []},
        {"user": "bob", "scopes": "read"},
        {"user": "bob", "scopes": ["write"]},
        {"user": "bob", "scopes": [["read"]]},
        {"user": "b\nob", "scopes": ["read"]},
        {"user": "", "scopes": ["read"]},
        {"user": 7, "scopes": ["read"]},
        {"user": "bob", "scopes": ["read"], "tenant": "a b"},
        {"user": "bob", "scopes": ["read"], "expires": "soon"},
        {"user": "bob", "scopes": ["read"], "expires": 0},
        {"user": "bob", "scopes": ["read"], "expires": -1},
        {"user": "bob", "scopes": ["read"], "expires": True},
        {"user": "bob", "scopes": ["read"], "expires": "4000d"},
        {"user": "bob", "scopes": ["read"], "expires": None},
        {"user": "bob", "scopes": ["read"], "token": "mine"},
    ],
)
def test_what_is_no_token(document: Any) -> None:
    async def main() -> None:
        async with Rig() as rig:
            before = await rig.ledger.tokens()
            problem(await admin_of(rig).post("/v1/tokens", json=document), 400, "bad_request")
            assert len(await rig.ledger.tokens()) == len(before) + 1

    run(main())


def test_an_administrator_of_another_tenant_stays_there() -> None:
    async def main() -> None:
        async with Rig() as rig:
            admin, other = admin_of(rig), admin_of(rig, tenant="other")
            mine = await made(admin)
            theirs = await made(other)
            assert theirs["tenant"] == "other"
            assert all(one["tenant"] == "other" for one in (await other.get("/v1/tokens")).json()["tokens"])
            foreign, absent = [await other.delete(f"/v1/tokens/{name}") for name in (mine["token_id"], "none")]
            problem(foreign, 404, "not_found")
            assert foreign.content == absent.content
            for more in ({"scopes": ["read"], "tenant": "default"}, {"scopes": ["agent"]}):
                problem(await other.post("/v1/tokens", json={"user": "x", **more}), 403, "forbidden")
            assert (await rig.client(mine["token"]).get("/v1/jobs")).status_code == 200
            assert (await admin.delete(f"/v1/tokens/{theirs['token_id']}")).status_code == 200

    run(main())


def test_a_session_makes_no_tokens() -> None:
    async def main() -> None:
        async with Rig() as rig:
            principal = rig.tokens.authenticate_bearer(b"Bearer " + rig.new_token("r", scopes=frozenset({"admin"})).encode())
            cookie = f"fleet_session={rig.sign_in.redeem(rig.sign_in.new_code(principal))}"
            browser = rig.client(None, Cookie=cookie, **{"Sec-Fetch-Site": "same-origin"})
            assert (await browser.get("/v1/tokens")).status_code == 200
            problem(await browser.post("/v1/tokens", json={"user": "x", "scopes": ["read"]}), 403, "forbidden")

    run(main())


# ---------------------------------------------------------------------- what is open ends


def held(rig: Rig, method: str, target: str, token: str, body: bytes = b"", **headers: str) -> Exchange:
    sent = [("host", HOST), ("authorization", f"Bearer {token}"), ("content-type", "application/json"), *headers.items()]
    return Exchange(rig.app, method, target, headers=sent, body=[body])


def test_streams_and_long_polls_end_with_their_token_and_no_others() -> None:
    async def main() -> None:
        async with Rig() as rig:
            admin = admin_of(rig)
            token = await made(admin, scopes=["submit", "read"])
            job_id = await rig.submit(1)
            events, poll = f"/v1/jobs/{job_id}/events", f"/v1/jobs/{job_id}?wait=60"
            async with (
                held(rig, "GET", events, token["token"]) as stream,
                held(rig, "GET", poll, token["token"]) as polling,
                held(rig, "POST", "/v1/math/f", token["token"], b'{"n":2}', prefer="wait=60") as calling,
                held(rig, "GET", events, rig.token) as other,
            ):
                await stream.contains(b"accepted")
                await other.contains(b"accepted")
                await until(lambda: len(rig.controller._changes._waiters) == 2)
                await admin.delete(f"/v1/tokens/{token['token_id']}")
                assert (await stream.whole()).endswith(b": the token has ended\n\n")
                for exchange in (polling, calling):
                    assert b"unauthorized" in await exchange.whole()
                    assert exchange.status == 401
                assert not other.ended
                assert other.task is not None
                assert list(rig.live.tasks.values()) == ["t0"]
            assert not rig.live.tasks
            # What was accepted stays accepted.
            assert len((await rig.http.get("/v1/jobs")).json()["jobs"]) == 2

    run(main())


def test_what_is_open_ends_when_the_time_of_its_token_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_fleet.server.tokens.REFRESH_S", 0.01)

    async def main() -> None:
        async with Rig() as rig:
            token = rig.new_token("bob", expires_us=rig.clock.us + 1_000)
            job_id = await rig.submit(1)
            keeper = asyncio.create_task(rig.book.keep())
            async with held(rig, "GET", f"/v1/jobs/{job_id}/events", token) as stream:
                await stream.contains(b"accepted")
                rig.clock.us += 1_000
                await stream.whole()
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    run(main())


def test_a_change_by_somebody_else_is_seen_and_a_ledger_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_fleet.server.tokens.REFRESH_S", 0.01)

    async def main() -> None:
        async with Rig() as rig:
            token = rig.new_token("bob")
            keeper = asyncio.create_task(rig.book.keep())
            honest, asked = rig.ledger.tokens, 0

            async def failing() -> list[TokenRecord]:
                nonlocal asked
                asked += 1
                raise OSError("no disk")

            rig.ledger.tokens = failing  # type: ignore[method-assign]
            await until(lambda: asked > 2)
            assert (await rig.client(token).get("/v1/jobs")).status_code == 200
            rig.ledger.tokens = honest  # type: ignore[method-assign]
            await rig.ledger.revoke_token("t1", at_us=rig.clock.us)
            await until(lambda: not rig.tokens.is_valid("t1"))
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    run(main())


def test_half_an_answer_is_not_ended_like_a_whole_one() -> None:
    """A download with its length is broken off: the client sees that bytes are missing."""

    async def main() -> None:
        async with Rig() as rig:
            sent: list[Any] = []
            blocked = asyncio.Event()

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
                await send({"type": "http.response.body", "body": b"half ", "more_body": True})
                blocked.set()
                await asyncio.Event().wait()

            rig.app._router = app
            headers = [(b"host", HOST.encode()), (b"authorization", f"Bearer {rig.token}".encode())]
            scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": headers}

            async def send(message: Any) -> None:
                sent.append(message)

            task = asyncio.create_task(rig.app(scope, None, send))
            await blocked.wait()
            assert rig.live.end_invalid(lambda token_id: False) == 1
            assert rig.live.end_invalid(lambda token_id: False) == 0
            await task
            assert [message.get("more_body") for message in sent] == [None, True]

    run(main())


def test_whoever_cancels_a_request_otherwise_is_obeyed() -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit(1)
            async with held(rig, "GET", f"/v1/jobs/{job_id}?wait=60", rig.token) as polling:
                await until(lambda: rig.controller._changes._waiters)
                task = polling.task
                assert task is not None
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                polling.task = asyncio.create_task(asyncio.sleep(0))

    run(main())


def test_refusals_take_the_same_time_whatever_is_wrong() -> None:
    """A thousand mutated tokens, and those that are missing, expired or revoked: their median times are within 2 ms."""

    async def main() -> None:
        async with Rig() as rig:
            expired = rig.new_token("x", expires_us=rig.clock.us)
            revoked = rig.new_token("x", revoked_us=rig.clock.us)
            tried: dict[str, list[bytes | None]] = {
                "missing": [None] * 200,
                "expired": [f"Bearer {expired}".encode()] * 200,
                "revoked": [f"Bearer {revoked}".encode()] * 200,
                "mutated": [value for value in mutants(rig.token, 1000) if len(value) < 10_000],
            }
            medians: dict[str, float] = {}
            bodies = set()
            for kind, values in tried.items():
                times = []
                for value in values:
                    headers = [(b"host", HOST.encode()), *([(b"authorization", value)] if value is not None else [])]
                    scope = {"type": "http", "method": "GET", "path": "/v1/jobs", "query_string": b"", "headers": headers}
                    sent: list[Any] = []

                    async def send(message: Any, sent: list[Any] = sent) -> None:
                        sent.append(message)

                    began = time.perf_counter()
                    await rig.app(scope, None, send)
                    times.append(time.perf_counter() - began)
                    assert sent[0]["status"] == 401
                    bodies.add(sent[1]["body"])
                medians[kind] = statistics.median(times)
            assert len(bodies) == 1
            assert max(medians.values()) - min(medians.values()) < 0.002, medians
            assert sum(rig.tokens.refused.values()) >= 1_390

    run(main())


def test_refusals_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Rig() as rig:
            wrong = rig.client("fleet_" + "A" * 43)
            for _ in range(50):
                await wrong.get("/v1/jobs")
            rig.clock.us += 11_000_000
            await wrong.get("/v1/jobs")

    run(main())
    lines = [record for record in caplog.records if getattr(record, "action", "") == "token_refused"]
    assert [line.requests for line in lines] == [1, 50]  # type: ignore[attr-defined]
    assert not any("AAAA" in str(vars(line)) for line in lines)


def test_the_local_agents_token_is_not_revoked_under_it() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.ledger.put_token(
                TokenRecord(
                    token_id="local-agent",
                    digest=b"",
                    user="local-agent",
                    tenant="default",
                    scopes=frozenset({"agent"}),
                    created_us=1,
                )
            )
            problem(await admin_of(rig).delete("/v1/tokens/local-agent"), 409, "conflict")

    run(main())


def test_the_operators_token_is_made_anew_at_start_once_it_was_revoked(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig() as rig:
            await ensure_tokens(rig.ledger, tmp_path, clock=rig.clock)
            first = (tmp_path / "token").read_text()
            await ensure_tokens(rig.ledger, tmp_path, clock=rig.clock)
            assert (tmp_path / "token").read_text() == first
            await rig.ledger.revoke_token("admin", at_us=rig.clock.us)
            rig.tokens.load(await ensure_tokens(rig.ledger, tmp_path, clock=rig.clock))
            second = (tmp_path / "token").read_text()
            assert second != first
            assert rig.tokens.authenticate_bearer(f"Bearer {second.strip()}".encode()).user == "admin"
            with pytest.raises(Unauthorized):
                rig.tokens.authenticate_bearer(f"Bearer {first.strip()}".encode())

    run(main())


def limits(monkeypatch: pytest.MonkeyPatch, **given: int) -> None:
    for name, value in given.items():
        monkeypatch.setattr(f"dask_fleet.server.token_retention.{name}", value)


def test_there_is_an_end_to_tokens_of_a_tenant_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, MAX_TENANT_TOKENS=9, MAX_TOKENS=12)

    async def main() -> None:
        async with Rig() as rig:
            admin, other = admin_of(rig), admin_of(rig, tenant="other")
            in_ledger = sum(one.tenant == "default" for one in await rig.ledger.tokens())
            mine = [await made(admin) for _ in range(9 - in_ledger)]
            refused = await admin.post("/v1/tokens", json={"user": "x", "scopes": ["read"]})
            assert "'default' has 9 valid tokens" in problem(refused, 409, "conflict")
            # Nobody else is touched by that, until all together are too many.
            for _ in range(12 - len(await rig.ledger.tokens())):
                await made(other)
            assert "of all tenants" in problem(
                await other.post("/v1/tokens", json={"user": "x", "scopes": ["read"]}), 409, "conflict"
            )  # fmt: skip
            # What the message says helps: a revoked one makes room at once.
            assert (await admin.delete(f"/v1/tokens/{mine[0]['token_id']}")).status_code == 200
            await made(admin)
            problem(await admin.post("/v1/tokens", json={"user": "x", "scopes": ["read"]}), 409, "conflict")

    run(main())


def test_tokens_that_have_expired_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, MAX_TENANT_TOKENS=4)

    async def main() -> None:
        async with Rig() as rig:
            admin = admin_of(rig, tenant="ci")
            for _ in range(4):
                for _ in range(3):  # beside the administrator's own
                    await made(admin, expires="1m")
                problem(await admin.post("/v1/tokens", json={"user": "x", "scopes": ["read"]}), 409, "conflict")
                rig.clock.us += 60_000_000
            assert len((await admin.get("/v1/tokens")).json()["tokens"]) == 13  # still listed

    run(main())


def test_ended_tokens_are_forgotten_after_a_while_and_the_log_keeps_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits(monkeypatch, MAX_TENANT_ENDED=2)

    async def main() -> None:
        async with Rig() as rig:
            admin = admin_of(rig)
            valid = await made(admin, expires="never")
            revoked = await made(admin, expires="never")
            await admin.delete(f"/v1/tokens/{revoked['token_id']}")
            expired = await made(admin, expires="1h")
            rig.clock.us += DAY_US
            assert await rig.book.forget_ended() == 0
            late = [await made(admin, expires=f"{n}h") for n in (1, 2)]
            rig.clock.us += DAY_US

            def ids(*tokens: dict[str, Any]) -> set[str]:
                return {token["token_id"] for token in tokens}

            async def known() -> set[str]:
                await rig.book.refresh()
                return {one.token_id for one in await rig.ledger.tokens()} & ids(valid, revoked, expired, *late)

            with caplog.at_level("INFO"):
                assert await rig.book.forget_ended() == 2  # two more than are kept, though they ended yesterday
                assert await known() == ids(valid, *late)
                rig.clock.us += 30 * DAY_US
                assert await rig.book.forget_ended() == 2  # thirty days after their end
            assert await known() == ids(valid)
            told = [record for record in caplog.records if getattr(record, "action", "") == "token_forgotten"]
            assert {getattr(record, "token_id", "") for record in told} == ids(revoked, expired, *late)
            assert {getattr(record, "revoked", None) for record in told} == {True, False}
            assert not any(one["token"] in caplog.text for one in (revoked, expired, *late))
            for one in (revoked, expired, *late):
                problem(await rig.client(one["token"]).get("/v1/jobs"), 401, "unauthorized")
            assert (await rig.client(valid["token"]).get("/v1/jobs")).status_code == 200

    run(main())


def test_a_revoked_token_of_the_data_folder_is_never_forgotten(tmp_path: Path) -> None:
    """Its file still holds it: a restart would take it for a new one."""

    async def main() -> None:
        async with Rig() as rig:
            await ensure_tokens(rig.ledger, tmp_path, clock=rig.clock)
            first = (tmp_path / "token").read_text()
            await rig.ledger.revoke_token("admin", at_us=rig.clock.now_us())
            rig.clock.us += 400 * DAY_US
            await rig.book.refresh()
            await rig.book.forget_ended()
            await ensure_tokens(rig.ledger, tmp_path, clock=rig.clock)
            assert (tmp_path / "token").read_text() != first

    run(main())
