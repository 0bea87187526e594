"""Uploads of large results: taken whole or not at all, from agents only, for attempts under way only."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.server.rig import Rig

from dask_fleet.protocol.frames import Start
from dask_fleet.server import routes_spool
from dask_fleet.server.routes_spool import clear_drafts

NAME = "0123456789abcdef" * 2
BODY = b"large" * 100_000
Scene = Callable[[Rig, httpx.AsyncClient, Start], Awaitable[None]]


def play(spool: Path, scene: Scene) -> None:
    async def whole() -> None:
        async with Rig(spool=spool) as rig:
            rig.attach()
            await rig.submit(1)
            start = await rig.started()
            agent = rig.client(rig.new_token("agent", scopes=frozenset({"agent"})))
            await scene(rig, agent, start)

    asyncio.run(whole())


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def target(start: Start, name: str = NAME, **query: object) -> str:
    asked = {"seq": start.seq, "attempt": start.attempt, **query}
    return f"/v1/agents/spool/{name}?" + "&".join(f"{key}={value}" for key, value in asked.items())


def test_it_is_taken_whole_and_again(tmp_path: Path) -> None:
    async def scene(_rig: Rig, agent: httpx.AsyncClient, start: Start) -> None:
        for body in (BODY, BODY[::-1]):  # the second try of an agent that did not get the first answer
            assert (await agent.put(target(start), content=body)).status_code == 204
            assert (tmp_path / NAME).read_bytes() == body
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
        assert names(tmp_path) == [NAME]

    play(tmp_path, scene)


def test_who_may_and_for_what(tmp_path: Path) -> None:
    async def scene(rig: Rig, agent: httpx.AsyncClient, start: Start) -> None:
        cases: list[tuple[httpx.AsyncClient, str, int]] = [
            (rig.http, target(start), 403),
            (rig.client(None), target(start), 401),
            (agent, target(start, name="..%2f..%2fetc"), 404),
            (agent, target(start, name="A" * 32), 404),
            (agent, target(start, name=NAME[:-1]), 404),
            (agent, target(start, attempt=start.attempt + 1), 409),
            (agent, target(start, seq=start.seq + 1), 409),
            (agent, target(start, seq="one"), 400),
            (agent, f"/v1/agents/spool/{NAME}", 400),
            (agent, target(start, more=1), 400),
        ]
        for client, path, status in cases:
            assert (await client.put(path, content=BODY)).status_code == status, path
        assert (await agent.get(target(start))).status_code == 405
        assert names(tmp_path) == []

    play(tmp_path, scene)


def test_its_size_is_bounded_and_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(rig: Rig, agent: httpx.AsyncClient, start: Start) -> None:
        async def pieces(body: bytes) -> AsyncIterator[bytes]:
            for begin in range(0, len(body), 1000):
                yield body[begin : begin + 1000]

        async def put(length: str, body: bytes, **headers: str) -> int:
            answer = await agent.put(target(start), content=pieces(body), headers={"Content-Length": length, **headers})
            return answer.status_code

        assert await put(str(start.max_result_bytes + 1), b"x") == 413  # before a byte of it is read
        assert await put("10", BODY) == 413
        assert await put(str(len(BODY)), BODY[:-1]) == 400
        assert await put("-1", BODY) == 400
        assert await put("many", BODY) == 400
        assert await put(str(len(BODY)), BODY, **{"Content-Encoding": "gzip"}) == 415
        assert names(tmp_path) == []
        monkeypatch.setattr(rig.controller, "result_limit", lambda _seq, _attempt: len(BODY))
        assert await put(str(len(BODY)), BODY) == 204

    play(tmp_path, scene)


def test_a_silent_or_vanished_sender_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_spool, "PATIENCE_S", 0.05)

    async def scene(rig: Rig, agent: httpx.AsyncClient, start: Start) -> None:
        async def stalls() -> AsyncIterator[bytes]:
            yield b"some"
            await asyncio.sleep(30)

        answer = await agent.put(target(start), content=stalls(), headers={"Content-Length": "100"})
        assert answer.status_code == 400
        assert "nothing came" in answer.text
        assert names(tmp_path) == []

        messages: list[Any] = [{"type": "http.request", "body": b"some", "more_body": True}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        path, _, query = target(start).partition("?")
        scope = {
            "type": "http", "method": "PUT", "path": path, "query_string": query.encode(), "scheme": "http", "root_path": "",
            "headers": [
                (b"host", b"localhost"), (b"content-length", b"100"),
                (b"authorization", agent.headers["Authorization"].encode()),
            ],
        }  # fmt: skip
        await rig.app(scope, receive, send)
        assert sent == []
        assert names(tmp_path) == []

    play(tmp_path, scene)


def test_a_full_disk_is_said_and_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(_rig: Rig, agent: httpx.AsyncClient, start: Start) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(routes_spool, "_keep", full)
            answer = await agent.put(target(start), content=BODY)
            assert (answer.status_code, answer.json()["code"]) == (507, "spool_full")
            assert answer.headers["Retry-After"]
            assert names(tmp_path) == []
        assert (await agent.put(target(start), content=BODY)).status_code == 204

    play(tmp_path, scene)


def test_what_a_killed_server_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.1234.part").touch()
    (tmp_path / NAME).touch()
    clear_drafts(tmp_path)
    assert names(tmp_path) == [NAME]
