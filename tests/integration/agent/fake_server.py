"""The server's end of the agents' websocket, and agents as real processes beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import psutil
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from dask_fleet.agent.link import AGENTS_PATH
from dask_fleet.protocol.frames import (
    MAX_MESSAGE_BYTES,
    Ack,
    Cancel,
    Heartbeat,
    Hello,
    LogGrown,
    Outcome,
    Progress,
    Ready,
    Start,
    Welcome,
    decode_from_agent,
    encode_batch,
)

SERVICE = Path(__file__).with_name("service_trial.py")
TOKEN = "fleet_test-token"
PATIENCE_S = 30.0
_SHOWN = 4_000
"""Characters of an agent's log that a failed test tells."""

T = TypeVar("T")


async def until(look: Callable[[], T], *, what: str = "the condition", timeout_s: float = PATIENCE_S) -> T:
    """Return the first true value of `look`."""
    give_up = time.monotonic() + timeout_s
    while not (value := look()):
        if time.monotonic() > give_up:
            raise AssertionError(f"{what} did not come true in {timeout_s:g} s")
        await asyncio.sleep(0.005)
    return value


class FakeServer:
    """Speaks frames with one agent at a time and remembers all it got."""

    def __init__(self, data_dir: Path, *, ledger_id: str = "ledger-a", targets: list[str] | None = None) -> None:
        self.data_dir = data_dir
        self.welcome = Welcome(ledger_id, targets if targets is not None else [str(SERVICE)], {})
        self.acknowledges = True
        self.accepts = True
        self.refused = 0
        self.refusal = ""
        """Why no agent is welcome."""
        self.hellos: list[Hello] = []
        self.ready: list[Ready] = []
        self.outcomes: list[Outcome] = []
        self.progress: list[Progress] = []
        self.grown: list[LogGrown] = []
        self.cluster_frames: list[Any] = []
        """What the agent said of clusters, in order."""
        self.version = ""
        self._server: Server | None = None
        self._connection: ServerConnection | None = None
        self._seq = 0
        self._port = 0

    async def open(self) -> None:
        self._server = await serve(
            self._serve, "127.0.0.1", self._port, compression=None, max_size=MAX_MESSAGE_BYTES,
            process_request=self._check,
            ping_interval=None,  # the agent pings; ours would draw from `random` while Hypothesis watches it in another test
        )  # fmt: skip
        self._port = next(iter(self._server.sockets)).getsockname()[1]
        draft = self.data_dir / "server.draft"
        draft.write_text(json.dumps({"url": f"http://127.0.0.1:{self._port}", "pid": os.getpid()}))
        draft.replace(self.data_dir / "server.json")

    async def close(self) -> None:
        """Go away without a word, as a killed server does."""
        if self._server is not None:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.transport.abort()
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def send(self, *frames: Any) -> None:
        assert self._connection is not None
        await self._connection.send(encode_batch(list(frames)))

    async def loaded(self) -> None:
        """Wait until the agent's workers have the trial service."""
        ready = await until(lambda: self.ready and self.ready[-1].versions and self.ready[-1], what="ready")
        self.version = ready.versions["trial"]

    def make_start(
        self, endpoint: str, *, timeout_s: float = 60.0, limit: int = 1 << 30, alone: bool = False, **params: Any
    ) -> Start:
        self._seq += 1
        return Start(
            self._seq, 1, 1, f"job{self._seq}", "trial", endpoint, self.version, json.dumps(params).encode(),
            timeout_s, limit, alone,
        )  # fmt: skip

    async def start(self, endpoint: str, **options: Any) -> Start:
        start = self.make_start(endpoint, **options)
        await self.send(start)
        return start

    async def outcome(self, start: Start) -> Outcome:
        """Wait for an attempt's end."""
        return await until(
            lambda: next((o for o in self.outcomes if (o.seq, o.attempt) == (start.seq, start.attempt)), None),
            what=f"the outcome of {start.endpoint}",
        )  # fmt: skip

    async def call(self, endpoint: str, **options: Any) -> Outcome:
        return await self.outcome(await self.start(endpoint, **options))

    async def value(self, endpoint: str, **options: Any) -> Any:
        """Return what a function gave, from JSON."""
        outcome = await self.call(endpoint, **options)
        assert outcome.failure is None, outcome.failure
        assert outcome.body is not None
        return json.loads(outcome.body)

    async def cancel(self, start: Start, *, grace_s: float = 10.0) -> None:
        await self.send(Cancel(start.seq, start.run, start.attempt, grace_s))

    def _check(self, connection: ServerConnection, request: Any) -> Any:
        if request.path != AGENTS_PATH or request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no")
        if not self.accepts:
            self.refused += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):  # agents are killed here
            await self._converse(connection)
        if self._connection is connection:
            self._connection = None

    async def _converse(self, connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, bytes)
            acks = []
            for frame in decode_from_agent(message):
                if isinstance(frame, Hello):
                    self.hellos.append(frame)
                    if self.refusal:
                        await connection.close(CloseCode.PROTOCOL_ERROR, self.refusal)
                        return
                    self._connection = connection
                    acks.append(self.welcome)
                elif isinstance(frame, Ready):
                    self.ready.append(frame)
                elif isinstance(frame, Progress):
                    self.progress.append(frame)
                elif isinstance(frame, Outcome):
                    self.outcomes.append(frame)
                    if self.acknowledges:
                        acks.append(Ack(frame.seq, frame.attempt))
                elif isinstance(frame, LogGrown):
                    self.grown.append(frame)
                elif not isinstance(frame, Heartbeat):
                    self.cluster_frames.append(frame)
            if acks:
                await connection.send(encode_batch(acks))


def make_data_dir(data_dir: Path, *, token: str = TOKEN) -> Path:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data_dir / "agent.token").write_text(token)
    return data_dir


class AgentProcess:
    """``python -m dask_fleet.agent`` in a session of its own."""

    def __init__(self, data_dir: Path, *, nworkers: int = 2, nthreads: int = 1, orphan_timeout_s: float = 30.0,
                 timeout_grace_s: float = 10.0, memory_limit: str = "auto", spares: int = 0) -> None:  # fmt: skip
        self.data_dir = data_dir
        command = [
            sys.executable, "-m", "dask_fleet.agent", "--server-file", str(data_dir / "server.json"),
            "--token-file", str(data_dir / "agent.token"), "--data-dir", str(data_dir),
            "--nworkers", str(nworkers), "--nthreads", str(nthreads), "--orphan-timeout", str(orphan_timeout_s),
            "--timeout-grace", str(timeout_grace_s), "--memory-limit", memory_limit,
            "--spares", str(spares),
        ]  # fmt: skip
        with (data_dir / "agent.log").open("ab") as log:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "FLEET_TOKEN": "secret"},
            )  # fmt: skip

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(PATIENCE_S)

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    async def exit_code(self) -> int:
        code = await until(lambda: (self.popen.poll() is not None) and [self.popen.returncode], what="the agent's end")
        return int(code[0])

    def members(self) -> list[psutil.Process]:
        """All living processes of the agent's session."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.popen.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """The worker processes: children of guards, and of the forkserver, if not adopted from elsewhere nor its standby."""
        own = {process.pid for process in self.members()}
        found = []
        for process in self._forked():
            with suppress(psutil.NoSuchProcess):
                if process.pid in own and process.name() not in {"fleet-forksrv", "fleet-guard"}:
                    found.append(process)
        for guard in self.guards():
            with suppress(psutil.NoSuchProcess):
                found += [process for process in guard.children() if process.pid in own]  # not what it has adopted
        return found

    def guards(self) -> list[psutil.Process]:
        """The parents of suspects' processes, whoever theirs is."""
        found = []
        for process in self.members():
            with suppress(psutil.NoSuchProcess):
                if process.name() == "fleet-guard":
                    found.append(process)
        return found

    def forkserver(self) -> psutil.Process | None:
        for process in psutil.Process(self.popen.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie, or gone meanwhile
                if process.name() != "fleet-guard" and "multiprocessing.forkserver" in " ".join(process.cmdline()):
                    return process
        return None

    def standby(self) -> psutil.Process | None:
        """The forkserver that waits for the death of the one in use."""
        for process in self._forked():
            with suppress(psutil.NoSuchProcess):
                if process.name() == "fleet-forksrv" and _selects(process.pid):  # not a child that has yet to name itself
                    return process
        return None

    def _forked(self) -> list[psutil.Process]:
        forkserver = self.forkserver()
        with suppress(psutil.NoSuchProcess):
            if forkserver is not None:
                return list(forkserver.children())
        return []

    def story(self) -> str:
        """Who lives, and what the log said last: for a test that fails."""
        told = ["the agent's processes:"]
        for process in self.members():
            with suppress(psutil.NoSuchProcess):
                told.append(f"  {process.pid}, child of {process.ppid()}: {process.name()}, {process.status()}")
        return "\n".join([*told, "the end of its log:", self.log()[-_SHOWN:]])

    def log(self) -> str:
        return (self.data_dir / "agent.log").read_text(errors="replace")


def _selects(pid: int) -> bool:
    with suppress(OSError):
        return any("eventpoll" in str(entry.readlink()) for entry in list(Path(f"/proc/{pid}/fd").iterdir()))
    return False


@contextmanager
def agent_process(data_dir: Path, **options: Any) -> Iterator[AgentProcess]:
    agent = AgentProcess(data_dir, **options)
    try:
        yield agent
    except BaseException as exc:
        exc.add_note(agent.story())
        raise
    finally:
        for process in agent.members():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        agent.popen.wait(PATIENCE_S)


@asynccontextmanager
async def fleet(data_dir: Path, **options: Any) -> AsyncIterator[tuple[FakeServer, AgentProcess]]:
    """A server with an agent that has loaded the trial service."""
    make_data_dir(data_dir)
    server = FakeServer(data_dir)
    await server.open()
    try:
        with agent_process(data_dir, **options) as agent:
            await server.loaded()
            yield server, agent
    finally:
        await server.close()


def run(main: Callable[[], Awaitable[None]], *, patience_s: float = 2 * PATIENCE_S) -> None:
    """Run an async test."""

    async def whole() -> None:
        async with asyncio.timeout(patience_s):
            await main()

    asyncio.run(whole())
