"""The frames, and how they travel.

Server and agent share one websocket; a message is a msgpack array of frames, so that what becomes ready together
travels together. Agent and worker process share a socket pair; there each message is prefixed with its length (four bytes,
big endian). Params and results are opaque bytes to everyone on the way.

An attempt is named by ``(seq, attempt)``: the ledger's handle of the job and the fence.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from dask_fleet.model.failure import Blame, Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.cluster_frames import ClusterAgentFrame, ClusterRef, ClusterServerFrame, JobCluster, NeedCluster
from dask_fleet.protocol.frame import Frame as Frame  # noqa: PLC0414 - the base is part of this module

PROTOCOL_VERSION = 2
MAX_MESSAGE_BYTES = 16 << 20
SPOOL_ABOVE_BYTES = 256 << 10
"""Results up to this size travel inline; larger ones as a spool file."""


# ---------------------------------------------------------------- agent → server


class AttemptRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An attempt by name."""

    seq: int
    run: int
    attempt: int


class Hello(Frame, frozen=True):
    """First frame of an agent: who it is and what it still holds.

    In every version it begins with the same four fields, of which `introduction` makes out who an agent of another one is.
    """

    protocol: int
    agent: str
    """Its id, kept over reconnects and server restarts; new with each agent process."""
    name: str
    """For people: ``local``, a host name."""
    pid: int
    slots: int
    """Processes times threads: attempts it can run at once."""
    ledger_id: str
    """Whose work it holds; empty when it never was welcomed."""
    held: list[AttemptRef]
    """Attempts it runs, or whose outcome it has still to deliver."""
    python: str = ""
    packages: dict[str, str] = {}
    home: str = ""
    """Names the agent's data folder, which one agent at a time locks: agents with the same home are successors of each
    other. The agent's id begins with it."""
    host: str = ""
    """Host name, for people."""
    nworkers: int = 1
    """Worker processes: as many suspects can run alone at once."""
    nthreads: int = 1
    memory_limit: int = 0
    """Of each worker process, in bytes; 0 if there is none."""
    resources: dict[str, float] = {}
    """Named resources that it declares: the Dask workers on it get no more of them together."""
    pool: str = "default"
    clusters: list[ClusterRef] = []
    """Scheduler processes it runs."""
    leases: list[str] = []
    """Slot leases whose workers it runs."""


class Ready(Frame, frozen=True):
    """What the agent's workers have loaded; sent after each change."""

    versions: dict[str, str]
    """Version by service name: only of services that all its workers have loaded."""
    problems: dict[str, str]
    """Why a target could not be loaded, by target."""
    slots: int


class Progress(Frame, frozen=True):
    """How far an attempt is; latest wins, nothing is durable."""

    seq: int
    run: int
    attempt: int
    done: float
    total: float
    text: str


class Outcome(Frame, frozen=True):
    """How an attempt ended; sent again until acknowledged."""

    seq: int
    run: int
    attempt: int
    state: AttemptState
    worker: str
    finished_us: int
    """By the agent's clock: for people. The ledger's own time decides."""
    failure: Failure | None = None
    media_type: str = ""
    digest: str = ""
    size: int = 0
    body: bytes | None = None
    spool: str | None = None
    """Name of the spool file within ``DATA_DIR/spool``, if the body is not inline. An agent that does not share this folder
    with the server uploads the file first."""
    json: bytes | None = None
    blame: Blame = Blame.NONE
    """With ``lost`` by the death of a worker process, and with ``failed`` by a time-out that cost the process: ``alone``."""
    log_bytes: int = 0
    """What it wrote: where its log has still to arrive, whoever follows it waits for that much."""
    died_with: str = ""
    """What died, where that was more than the worker process: the same for all that died with it."""


class LogChunk(Frame, frozen=True):
    """What an attempt wrote. Sent by agents that do not share the data folder with the server; the server puts it at its
    offset, so that repeating is harmless.
    """

    seq: int
    run: int
    attempt: int
    stream: str
    """``stdout``, ``stderr`` or ``log``."""
    offset: int
    data: bytes


class LogGrown(Frame, frozen=True):
    """The log of an attempt has grown in the shared data folder: whoever follows it looks again. May be dropped."""

    seq: int
    attempt: int
    run: int = 0


class Heartbeat(Frame, frozen=True):
    """Sign of life, every `HEARTBEAT_S`, and what the agent holds: frames only speed up what this makes certain."""

    free: int
    held: list[AttemptRef] | None = None
    """Attempts it runs or whose outcome is unacknowledged; ``None`` says nothing of them."""


HEARTBEAT_S = 5.0


# ---------------------------------------------------------------- server → agent


class Welcome(Frame, frozen=True):
    """Answer to `Hello`."""

    ledger_id: str
    targets: list[str]
    """Services to load: files (absolute) or modules."""
    versions: dict[str, str]
    """Version the server serves, by service name. A worker that loads another one is of no use and is started again when
    these change."""
    lease_s: float = 15.0
    """How long the agent's lease lasts after each heartbeat."""


class Start(Frame, frozen=True):
    """Run this attempt. It is durable already: the agent may start at once."""

    seq: int
    run: int
    attempt: int
    job_id: str
    service: str
    endpoint: str
    version: str
    params: bytes
    timeout_s: float
    max_result_bytes: int
    alone: bool = False
    """A suspect: no other attempt may be in its process, before or meanwhile."""
    tenant: str = "default"
    """Two tenants never share a process."""


class Cancel(Frame, frozen=True):
    """End this attempt: cooperatively, then by killing its process after `grace_s`. Answered by its `Outcome`.

    An attempt the agent does not know is answered with an outcome ``lost``.
    """

    seq: int
    run: int
    attempt: int
    grace_s: float = 10.0


class Ack(Frame, frozen=True):
    """The outcome is durable (or was refused by the fence): forget it."""

    seq: int
    attempt: int


class LogAck(Frame, frozen=True):
    """The server has the log of this attempt up to there: what a `LogChunk` brought is on its disk."""

    seq: int
    attempt: int
    stream: str
    upto: int


class Shutdown(Frame, frozen=True):
    """Let running attempts end for at most `drain_s`, then end all processes and yourself."""

    drain_s: float


AgentFrame = Hello | Ready | Progress | Outcome | Heartbeat | LogChunk | LogGrown | ClusterAgentFrame
ServerFrame = Welcome | Start | Cancel | Ack | LogAck | Shutdown | ClusterServerFrame

# ---------------------------------------------------------------- agent ↔ worker process


class Load(Frame, frozen=True):
    """Agent to worker: import these services; answered by `Loaded`."""

    targets: list[str]


class Loaded(Frame, frozen=True):
    """Worker to agent: what could be imported."""

    versions: dict[str, str]
    problems: dict[str, str]


class Stop(Frame, frozen=True):
    """Agent to worker: end now; no attempt is running."""


WorkerBound = Load | Start | Cancel | Stop | JobCluster
AgentBound = Loaded | Progress | Outcome | LogGrown | NeedCluster

_encoder = msgspec.msgpack.Encoder()

encode_batch = _encoder.encode
"""Encode a list of frames to one websocket message."""

_decode_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_introduction = msgspec.msgpack.Decoder(tuple[Literal["Hello"], int, str, str, int]).decode

decode_from_agent = msgspec.msgpack.Decoder(list[AgentFrame]).decode
decode_from_server = msgspec.msgpack.Decoder(list[ServerFrame]).decode


def encode_prefixed(frame: Frame) -> bytes:
    """Encode one frame for the socket pair, with its length in front."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + body


class Introduction(NamedTuple):
    """What an agent of whatever version says of itself."""

    protocol: int
    agent: str
    name: str
    pid: int


def introduction(message: bytes) -> Introduction | None:
    """Return who an agent is whose first message may be of another version; ``None`` if it does not begin with a `Hello`."""
    try:
        greeting = _decode_parts(_decode_parts(message)[0])
        _, protocol, agent, name, pid = _decode_introduction(encode_batch(greeting[:5]))
    except (msgspec.MsgspecError, IndexError):
        return None
    return Introduction(protocol, agent, name, pid)


decode_for_worker = msgspec.msgpack.Decoder(WorkerBound).decode
decode_for_agent = msgspec.msgpack.Decoder(AgentBound).decode
