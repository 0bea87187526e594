"""An outcome waits until its bytes are with the server, and never longer than that can help."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from dask_fleet.agent import uploads
from dask_fleet.agent.options import AgentOptions
from dask_fleet.agent.uploads import Uploads
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import Outcome

BODY = b"large" * 200_000


class Answers:
    """An HTTP server that gives the statuses it is told, and keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self.requests: list[tuple[str, bytes]] = []
        self.port = 0
        self._busy = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Answers]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self
            await until(lambda: not self._busy)  # the clients have closed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._busy += 1
        try:
            await self._answer(reader, writer)
        finally:
            self._busy -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(int(line.split(":")[1]) for line in head.lower().splitlines() if "content-length" in line)
                self.requests.append((head, await reader.readexactly(length)))
                status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
                writer.write(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def outcome(seq: int, *, spool: str | None = "file") -> Outcome:
    return Outcome(seq, 1, 1, AttemptState.SUCCEEDED, "w", 0, size=len(BODY), spool=spool)


Scene = Callable[[Uploads, list[int], AgentOptions], Awaitable[None]]


def play(folder: Path, answers: Answers, scene: Scene, body: bytes | None = BODY) -> None:
    async def whole() -> None:
        (folder / "agent.token").write_text("fleet_x")
        (folder / "spool").mkdir()
        if body is not None:
            (folder / "spool" / "file").write_bytes(body)
        async with answers.open(), asyncio.timeout(30):
            options = AgentOptions(
                token_file=folder / "agent.token", data_dir=folder, server=f"http://127.0.0.1:{answers.port}"
            )
            sent: list[int] = []
            given = Uploads(options, uploaded=lambda outcome: sent.append(outcome.seq))
            try:
                await scene(given, sent, options)
            finally:
                await given.close()

    asyncio.run(whole())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - files and another's lists: there is nothing to wait on
        await asyncio.sleep(0.005)


def test_it_is_told_once_the_bytes_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_BACKOFF_S", (0.01, 0.02))
    answers = Answers(503, 507, 204)

    async def scene(given: Uploads, sent: list[int], options: AgentOptions) -> None:
        assert not given.is_due(outcome(1, spool=None))
        assert given.is_due(outcome(7))
        assert given.is_due(outcome(7))  # a heartbeat asks again: still one upload
        assert (sent, given.under_way) == ([], 1)
        await until(lambda: sent)
        assert sent == [7]
        assert not given.is_due(outcome(7))
        assert len(answers.requests) == 3
        head, body = answers.requests[-1]
        assert body == BODY
        assert head.startswith("PUT /v1/agents/spool/file?seq=7&attempt=1 ")
        assert "Authorization: Bearer fleet_x" in head
        given.forget((7, 1))
        await until(lambda: not (options.spool / "file").exists())
        given.forget((7, 1))  # an acknowledgement that comes twice

    play(tmp_path, answers, scene)


@pytest.mark.parametrize("status", [409, 413, 404])
def test_what_the_server_does_not_want_is_told_at_once(tmp_path: Path, status: int) -> None:
    answers = Answers(status)

    async def scene(given: Uploads, sent: list[int], _options: AgentOptions) -> None:
        assert given.is_due(outcome(7))
        await until(lambda: sent)
        assert len(answers.requests) == 1

    play(tmp_path, answers, scene)


def test_lost_bytes_hold_nothing_up(tmp_path: Path) -> None:
    async def scene(given: Uploads, sent: list[int], _options: AgentOptions) -> None:
        assert given.is_due(outcome(7))
        await until(lambda: sent)

    play(tmp_path, Answers(204), scene, body=None)


def test_another_ledger_wants_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_BACKOFF_S", (30.0, 30.0))
    answers = Answers(503)

    async def scene(given: Uploads, sent: list[int], options: AgentOptions) -> None:
        assert given.is_due(outcome(7))
        await until(lambda: answers.requests)
        given.clear()
        await until(lambda: not (options.spool / "file").exists())
        assert (sent, given.under_way) == ([], 0)

    play(tmp_path, answers, scene)
