"""Health, services, status, and signing a browser in."""

from __future__ import annotations

import pytest
from tests.unit.server.rig import Rig, run
from tests.unit.server.test_routes_jobs import problem


def test_health_and_readiness_are_a_word_each() -> None:
    async def main() -> None:
        async with Rig() as rig:
            anyone = rig.client(None)
            assert (await anyone.get("/healthz")).text == "ok"
            answer = await anyone.get("/readyz")
            assert (answer.status_code, answer.text) == (200, "ready")
            await rig.controller.drain(0)
            answer = await anyone.get("/readyz")
            assert (answer.status_code, answer.text) == (503, "not ready: the server is shutting down")
            assert (await anyone.get("/healthz")).status_code == 200

    run(main())


def test_services_are_told_once() -> None:
    async def main() -> None:
        async with Rig() as rig:
            answer = await rig.http.get("/v1/services")
            (service,) = answer.json()["services"]
            assert (service["name"], service["version"]) == ("math", "v1")
            (endpoint,) = service["endpoints"]
            assert endpoint["path"] == "/v1/math/f"
            assert endpoint["order"] == ["n"]
            assert endpoint["parameters"]["required"] == ["n"]
            assert endpoint["policy"]["cache_s"] == 3600
            again = await rig.http.get("/v1/services", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")

    run(main())


def test_status_shows_queue_and_agents() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.submit(1)
            assert (await rig.http.get("/v1/status")).json()["queued"] == 1
            rig.attach(slots=4)
            await rig.started()
            status = (await rig.http.get("/v1/status")).json()
            assert (status["queued"], status["running"], status["draining"]) == (0, 1, False)
            (agent,) = status["agents"]
            assert (agent["name"], agent["slots"], agent["free"]) == ("local", 4, 3)

    run(main())


def test_a_link_signs_in_once_and_leads_to_the_docs() -> None:
    async def main() -> None:
        async with Rig() as rig:
            made = await rig.http.post("/v1/signin")
            assert made.status_code == 201
            link = made.json()["url"]
            browser = rig.client(None)
            assert (await browser.head(link)).status_code == 401  # a preview does not use it up
            answer = await browser.get(link)
            assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
            cookie = answer.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert (await browser.get("/docs")).status_code == 200
            used = await rig.client(None).get(link)
            assert used.status_code == 401
            assert "set-cookie" not in used.headers

    run(main())


def test_a_link_followed_from_another_site_leads_on_from_a_page_of_ours() -> None:
    async def main() -> None:
        async with Rig() as rig:
            link = (await rig.http.post("/v1/signin")).json()["url"]
            browser = rig.client(None)
            answer = await browser.get(link, headers={"Sec-Fetch-Site": "cross-site"})
            assert answer.status_code == 200
            assert "/docs" in answer.text
            assert (await browser.get("/docs")).status_code == 200

    run(main())


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_browser_that_is_not_signed_in_is_told_how_to(path: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            answer = await rig.client(None).get(path)
            assert answer.status_code == 401
            assert answer.headers["content-type"].startswith("text/html")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert "/v1/signin" in answer.text
            assert "math" not in answer.text

    run(main())


@pytest.mark.parametrize("query", ["", "?code=", "?code=wrong", "?code=" + "x" * 5000, "?code=%FF"])
def test_a_bad_link_says_how_to_get_a_good_one(query: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            answer = await rig.client(None).get(f"/signin{query}")
            assert answer.status_code == 401
            assert answer.headers["content-type"].startswith("text/html")
            assert "/v1/signin" in answer.text
            assert "set-cookie" not in answer.headers
            good = await rig.client(None).get("/signin?code=other")
            # The page is the same for all but its nonce.
            assert len(answer.content) == len(good.content)

    run(main())


def test_a_session_makes_no_sessions() -> None:
    async def main() -> None:
        async with Rig() as rig:
            browser = rig.client(None, **{"Sec-Fetch-Site": "same-origin"})
            await browser.get((await rig.http.post("/v1/signin")).json()["url"])
            problem(await browser.post("/v1/signin"), 403, "forbidden")

    run(main())


def test_an_unexpected_failure_is_a_problem_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Rig() as rig:

            def broken() -> None:
                raise RuntimeError("secret inside")

            monkeypatch.setattr(rig.controller, "status", broken)
            answer = await rig.http.get("/v1/status")
            problem(answer, 500, "internal_error")
            assert "secret" not in answer.text
            assert answer.json()["request_id"] in answer.json()["instance"]

    run(main())
