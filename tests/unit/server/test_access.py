"""Who may see and do what: every page of the API, for another tenant, without a scope, without a token, from another site.

The rows come from the OpenAPI document and the router, so a new page without a row fails here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route
from tests.unit.server.rig import HOST, MANIFEST, Exchange, Rig, run
from tests.unit.server.test_routes_jobs import ABSENT, problem

from dask_fleet.server.auth import Scope
from dask_fleet.server.openapi import openapi_document
from dask_fleet.server.routes_spool import routes as spool_routes

OPEN = {"/healthz", "/readyz"}
PAGES = [
    (method.upper(), path)
    for path, operations in openapi_document(MANIFEST, version="0")["paths"].items()
    for method in operations
]
OF_AN_OPERATOR = {(method, path) for method, path in PAGES if path.startswith("/v1/tokens")}
OF_A_JOB = [(method, path) for method, path in PAGES if "{job_id}" in path]
SUBMITTING = {
    ("POST", "/v1/math/f"),
    ("POST", "/v1/math/f:batch"),
    ("DELETE", "/v1/jobs/{job_id}"),
    ("POST", "/v1/jobs/{job_id}:retry"),
}
ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "X"]


def test_the_document_has_every_route() -> None:
    async def main() -> None:
        async with Rig() as rig:
            routes = {route.path for route in rig.app._router.routes if isinstance(route, Route)}
            of_agents = {"/v1/agents/spool/{name}"}  # a protocol of ours, for nobody else
            described = {path for _, path in PAGES} | {"/signin", "/docs", "/openapi.json", "/"} | of_agents
            assert routes <= described
            assert {path for _, path in PAGES} - {"/v1/math/f", "/v1/math/f:batch"} <= routes

    run(main())


@pytest.mark.parametrize(("method", "path"), OF_A_JOB)
def test_a_foreign_job_is_byte_equal_to_none(method: str, path: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            mine = await rig.finished(1)
            queued_of_other = rig.client(rig.new_token("eve", tenant="other"))
            foreign = await queued_of_other.request(method, path.format(job_id=mine))
            absent = await queued_of_other.request(method, path.format(job_id=ABSENT))
            problem(foreign, 404, "not_found")
            assert foreign.content == absent.content
            assert foreign.headers == absent.headers
            job = (await rig.http.get(f"/v1/jobs/{mine}")).json()
            assert (job["status"], job["run"]) == ("succeeded", 1)

    run(main())


def test_lists_and_equal_calls_tell_nothing_of_another_tenant() -> None:
    async def main() -> None:
        async with Rig() as rig:
            mine = await rig.submit(5, Fleet_Tags="mine")
            eve = rig.client(rig.new_token("eve", tenant="other"))
            for query in ("", "?user=ann", "?tag=mine", "?status=queued", "?service=math&endpoint=f"):
                assert (await eve.get(f"/v1/jobs{query}")).json() == {"jobs": [], "next_cursor": None}
            answer = await eve.post("/v1/math/f", json={"n": 5})
            assert answer.json()["job_id"] != mine
            assert answer.json()["user"] == "eve"
            assert answer.status_code == 202

    run(main())


@pytest.mark.parametrize(("method", "path"), PAGES)
def test_a_token_is_needed_and_a_scope_of_it(method: str, path: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            target = path.format(job_id=await rig.submit(1), token_id="t0", name="none")
            nobody = rig.client(None)
            every = frozenset(Scope)
            expired = rig.client(rig.new_token("ann", scopes=every, expires_us=rig.clock.us))
            revoked = rig.client(rig.new_token("ann", scopes=every, revoked_us=rig.clock.us))
            agent = rig.client(rig.new_token("agent", scopes=frozenset({"agent"})))
            working = rig.client(rig.new_token("bob", scopes=frozenset({"read", "submit", "run_code"})))
            reader = rig.client(rig.new_token("bob", scopes=frozenset({"read"})))
            submitter = rig.client(rig.new_token("bob", scopes=frozenset({"submit"})))
            if path in OPEN:
                assert (await nobody.request(method, target)).status_code == 200
                return
            bodies = set()
            for client in (nobody, expired, revoked, rig.client("fleet_" + "A" * 43)):
                answer = await client.request(method, target)
                problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
                bodies.add(answer.content)
            assert len(bodies) == 1
            for address in ("?token=", "?wait=1&access_token=", "?x="):  # in histories and logs of proxies for ever
                shown = await rig.http.request(method, f"{target}{address}{rig.token}")
                assert shown.content in bodies
            if (method, path) in OF_AN_OPERATOR:
                problem(await working.request(method, target), 403, "forbidden")
            problem(await agent.request(method, target), 403, "forbidden")
            refused = reader if (method, path) in SUBMITTING else submitter
            problem(await refused.request(method, target), 403, "forbidden")

    run(main())


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/nothing", "/nothing", "/v1/agents", "/static/../docs"])
def test_every_other_page_needs_a_token_too(path: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            assert (await rig.client(None).get(path)).status_code == 401

    run(main())


def session(rig: Rig, token: str = "") -> str:
    principal = rig.tokens.authenticate_bearer(b"Bearer " + (token or rig.token).encode())
    return rig.sign_in.redeem(rig.sign_in.new_code(principal))


def matrix() -> Iterator[tuple[str, str]]:
    for path in sorted({path for _, path in PAGES} - OPEN):
        for method in ALL_METHODS:
            yield method, path


@pytest.mark.parametrize(("method", "path"), list(matrix()))
def test_a_cookie_changes_nothing_from_another_site(method: str, path: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            job_id = await rig.submit(1)
            target = path.format(job_id=job_id, token_id="t0", name="none")
            before, tokens = await rig.ledger.events(1), await rig.ledger.tokens()
            admin = rig.new_token("ann", scopes=frozenset({"admin"}))
            for extra in ([], [("sec-fetch-site", "cross-site")], [("origin", "http://evil.example")]):
                headers = [("host", HOST), ("cookie", f"fleet_session={session(rig, admin)}"), *extra]
                async with Exchange(rig.app, method, target, headers=headers, body=[b'{"n":2}']) as exchange:
                    if (method, path) == ("GET", "/v1/jobs/{job_id}/events"):
                        await exchange.contains(b"accepted")
                    else:
                        await exchange.whole()
                if method in {"GET", "HEAD", "OPTIONS"}:
                    assert exchange.status != 403
                else:
                    assert exchange.status == 403, (method, path, exchange.status)
            assert await rig.ledger.events(1) == before
            assert len(await rig.ledger.tokens()) == len(tokens) + 1
            assert not any(one.revoked_us for one in await rig.ledger.tokens())
            assert len((await rig.http.get("/v1/jobs")).json()["jobs"]) == 1

    run(main())


@pytest.mark.parametrize("path", sorted({path for _, path in PAGES} | {"/v1/agents", "/", "/docs", "/signin", "/nothing"}))
def test_no_page_opens_a_websocket_to_a_browser(path: str) -> None:
    """Not even from our own pages: only agents open any, and they carry a token."""

    async def main() -> None:
        async with Rig() as rig:
            for origin in ("http://evil.example", f"http://{HOST}"):
                said: list[str] = []

                async def receive() -> dict[str, str]:
                    return {"type": "websocket.connect"}

                async def send(message: dict[str, str], said: list[str] = said) -> None:
                    said.append(f"{message['type']} {message.get('status', '')}".strip())

                headers = {"host": HOST, "cookie": f"fleet_session={session(rig)}", "origin": origin}
                scope = {
                    "type": "websocket",
                    "scheme": "ws",
                    "path": path.format(job_id=ABSENT, token_id="t0", name="none"),
                    "query_string": b"",
                    "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
                }
                await rig.app(scope, receive, send)
                status = 401 if path == "/v1/agents" else 404
                assert said == [f"websocket.http.response.start {status}", "websocket.http.response.body"]

    run(main())


def test_a_cookie_works_from_our_own_pages() -> None:
    async def main() -> None:
        async with Rig() as rig:
            cookie = f"fleet_session={session(rig)}"
            own = rig.client(None, Cookie=cookie, **{"Sec-Fetch-Site": "same-origin"})
            job_id = (await own.post("/v1/math/f", json={"n": 1})).json()["job_id"]
            assert (await own.delete(f"/v1/jobs/{job_id}")).json()["cancel_requested_by"] == "ann"

    run(main())


def test_a_wrong_token_is_not_mended_by_a_cookie() -> None:
    async def main() -> None:
        async with Rig() as rig:
            client = rig.client("fleet_" + "A" * 43, Cookie=f"fleet_session={session(rig)}")
            assert (await client.get("/v1/jobs")).status_code == 401

    run(main())


@pytest.mark.parametrize(("method", "path"), list(matrix()))
def test_what_a_page_does_not_take_it_refuses_with_what_it_takes(method: str, path: str) -> None:
    taken = {one for one, page in PAGES if page == path}
    taken |= {"HEAD"} if "GET" in taken else set()

    async def main() -> None:
        async with Rig() as rig:
            answer = await rig.http.request(method, path.format(job_id=ABSENT, token_id="none", name="none"))
            if method in taken:
                assert answer.status_code != 405
            elif method == "OPTIONS":
                assert answer.status_code == 204
                assert set(answer.headers["allow"].split(", ")) == taken | {"OPTIONS"}
            else:
                assert answer.status_code == 405
                assert method == "HEAD" or answer.json()["code"] == "method_not_allowed"
                assert taken <= set(answer.headers["allow"].split(", "))

    run(main())


@pytest.mark.parametrize(
    "path", ["/v1/jobs/", "/v1//jobs", "/v1/math/f/", "/v1/math", "/V1/jobs", "/healthz/", "/v1/math/g"]
)
def test_pages_are_known_by_their_exact_names(path: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            for method in ("GET", "POST"):
                problem(await rig.http.request(method, path), 404, "not_found")

    run(main())


def test_other_hosts_are_turned_away_before_anything_else() -> None:
    async def main() -> None:
        async with Rig() as rig:
            for path in ("/healthz", "/signin", "/v1/jobs", "/docs"):
                problem(await rig.http.get(path, headers={"Host": "evil.example"}), 421, "host_not_allowed")

    run(main())


class Socket:
    """A websocket handshake on bare ASGI; `status` is its answer, 101 if it was let in."""

    def __init__(self, rig: Rig, *headers: tuple[str, str]) -> None:
        self._app = rig.app
        self._headers = [(b"host", HOST.encode()), *((name.encode(), value.encode()) for name, value in headers)]
        self.status = 0

    async def ask(self) -> int:
        async def receive() -> dict[str, object]:
            return {"type": "websocket.connect"} if not self.status else {"type": "websocket.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if not self.status:
                self.status = int(str(message.get("status", 101)))

        scope = {"type": "websocket", "path": "/v1/agents", "query_string": b"", "headers": self._headers, "scheme": "ws"}
        await self._app(scope, receive, send)
        return self.status


def test_only_agents_come_in_where_agents_do(tmp_path: Path) -> None:
    """The websocket, and the door for large results: for the scope ``agent`` and nothing else, not even ``admin``."""

    async def main() -> None:
        async with Rig() as rig:
            rig.app._router.routes.extend(spool_routes(rig.controller, spool=tmp_path))
            upload = f"/v1/agents/spool/{'a' * 32}?seq=1&attempt=1"
            cookie = ("cookie", f"fleet_session={session(rig)}")
            assert await Socket(rig).ask() == 401
            assert await Socket(rig, cookie, ("sec-fetch-site", "same-origin")).ask() == 401
            all_but_agent = frozenset(Scope) - {Scope.AGENT}
            callers = {
                "fleet_" + "A" * 43: 401,
                rig.new_token("x", scopes=frozenset({"agent"}), expires_us=rig.clock.us): 401,
                rig.new_token("x", scopes=frozenset({"agent"}), revoked_us=rig.clock.us): 401,
                rig.new_token("x", scopes=all_but_agent): 403,
                rig.new_token("x", tenant="other", scopes=all_but_agent): 403,
            }
            for token, status in callers.items():
                bearer = ("authorization", f"Bearer {token}")
                assert await Socket(rig, bearer).ask() == status
                assert await Socket(rig, bearer, cookie).ask() == status
                answer = await rig.client(token).put(upload, content=b"x")
                assert answer.status_code == status
            assert (await rig.client(None).put(upload, content=b"x")).status_code == 401
            assert not os.listdir(tmp_path)  # noqa: PTH208 - a few names, read at once
            agent = rig.new_token("x", scopes=frozenset({"agent"}))
            assert await Socket(rig, ("authorization", f"Bearer {agent}")).ask() == 101
            assert (await rig.client(agent).put(upload, content=b"x")).status_code not in {401, 403}

    run(main())
