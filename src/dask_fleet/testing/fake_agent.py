"""An agent made of nothing but the protocol, for tests: it does what it is told, late, twice or never."""

from __future__ import annotations

import asyncio
import hashlib
import time
from types import TracebackType
from typing import Self, TypeVar

from websockets.asyncio.client import ClientConnection, connect

from dask_fleet.model.failure import Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.cluster_frames import ClusterRef
from dask_fleet.protocol.frames import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    Ack,
    AgentFrame,
    AttemptRef,
    Frame,
    Hello,
    Outcome,
    Ready,
    ServerFrame,
    Start,
    Welcome,
    decode_from_server,
    encode_batch,
)

TIMEOUT_S = 20.0

F = TypeVar("F", bound=Frame)


class FakeAgent:
    """A connection to ``/v1/agents`` that speaks frames; nothing runs behind it.

    Parameters
    ----------
    url
        The server's, ``http://…``.
    token
        One with the scope ``agent``: it stands in ``DATA_DIR/agent.token``.
    agent
        Its id, which begins with `name` and ``-``. Two with one name are one agent after the other.
    slots
        How many attempts it claims to be able to run at once.
    held
        Attempts it says it still holds.
    clusters, leases
        Schedulers and slot leases that it says it still has.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        agent: str = "local-a",
        name: str = "local",
        slots: int = 1,
        ledger_id: str = "",
        held: list[AttemptRef] | None = None,
        clusters: list[ClusterRef] | None = None,
        leases: list[str] | None = None,
    ) -> None:
        self._url = url.replace("http://", "ws://", 1) + "/v1/agents"
        self._token = token
        self._hello = Hello(
            protocol=PROTOCOL_VERSION, agent=agent, name=name, pid=0, slots=slots, ledger_id=ledger_id, held=held or [],
            clusters=clusters or [], leases=leases or [],
        )  # fmt: skip
        self._socket: ClientConnection | None = None
        self._waiting: list[ServerFrame] = []
        self.welcome: Welcome | None = None

    async def __aenter__(self) -> Self:
        """Dial, greet and be welcomed."""
        self._socket = await connect(
            self._url,
            additional_headers={"Authorization": f"Bearer {self._token}"},
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=TIMEOUT_S,
            ping_interval=None,
        )
        await self.send(self._hello)
        (self.welcome,) = await self.take(Welcome)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Vanish, without a word."""
        assert self._socket is not None
        self._socket.transport.abort()
        await self._socket.wait_closed()

    async def send(self, *frames: AgentFrame) -> None:
        """Send frames in one message."""
        assert self._socket is not None
        async with asyncio.timeout(TIMEOUT_S):
            await self._socket.send(encode_batch(list(frames)))

    async def ready(self) -> None:
        """Say that the workers have loaded what the server serves."""
        assert self.welcome is not None
        await self.send(Ready(versions=self.welcome.versions, problems={}, slots=self._hello.slots))

    async def take(self, kind: type[F], count: int = 1) -> list[F]:
        """Return the next `count` frames of that kind; others that come meanwhile stay for later calls.

        Raises
        ------
        TimeoutError
            If they do not come within `TIMEOUT_S`.
        websockets.ConnectionClosed
            If the server closed the connection.
        """
        assert self._socket is not None
        found: list[F] = []
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                waiting: list[ServerFrame] = []
                for frame in self._waiting:
                    if isinstance(frame, kind) and len(found) < count:
                        found.append(frame)
                    else:
                        waiting.append(frame)
                self._waiting = waiting
                if len(found) == count:
                    return found
                data = await self._socket.recv()
                assert isinstance(data, bytes)
                self._waiting.extend(decode_from_server(data))

    def heard(self, kind: type[F]) -> list[F]:
        """Return the frames of that kind that have come and were not taken."""
        return [frame for frame in self._waiting if isinstance(frame, kind)]

    async def deliver(self, *outcomes: Outcome) -> None:
        """Send outcomes and wait until each is acknowledged."""
        await self.send(*outcomes)
        open_ = {(outcome.seq, outcome.attempt) for outcome in outcomes}
        while open_:
            (ack,) = await self.take(Ack)
            open_.discard((ack.seq, ack.attempt))


def succeeded(start: Start, result: bytes) -> Outcome:
    """Return the outcome of an attempt that gave `result`, which is JSON."""
    return Outcome(
        seq=start.seq,
        run=start.run,
        attempt=start.attempt,
        state=AttemptState.SUCCEEDED,
        worker="fake",
        finished_us=time.time_ns() // 1000,
        media_type="application/json",
        digest=hashlib.sha256(result).hexdigest(),
        size=len(result),
        body=result,
    )


def ended(start: Start, state: AttemptState, failure: Failure | None = None) -> Outcome:
    """Return the outcome of an attempt that gave no result."""
    return Outcome(
        seq=start.seq,
        run=start.run,
        attempt=start.attempt,
        state=state,
        worker="fake",
        finished_us=time.time_ns() // 1000,
        failure=failure,
    )


def ref(start: Start) -> AttemptRef:
    """Return the name of an attempt."""
    return AttemptRef(seq=start.seq, run=start.run, attempt=start.attempt)
