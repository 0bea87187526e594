"""P8, second half: your code never runs in ours. A pickle that writes down the process which loads it is sent through every
channel that bytes of users or of workers take; no process of the control plane may turn up, and no client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.promises import service_canary
from tests.promises.form import Record
from websockets.asyncio.client import connect

from dask_fleet.client import Client
from dask_fleet.model.errors import FleetError
from dask_fleet.protocol.frames import PROTOCOL_VERSION, Hello, LogChunk, Outcome, Start
from dask_fleet.testing.fake_agent import FakeAgent, succeeded
from dask_fleet.testing.served import Answer, ServedFleet

pytestmark = pytest.mark.promise

HERE = Path(__file__).parent
COMMAND = str(Path(sys.executable).with_name("dask-fleet"))


@dataclass
class Canary:
    """The file that unpickling writes to, and what was sent through which channel."""

    path: Path
    channels: list[str] = field(default_factory=list)

    @property
    def payload(self) -> bytes:
        return service_canary.payload()

    def sent(self, channel: str) -> None:
        self.channels.append(channel)

    def pids(self) -> list[int]:
        """Return the processes that have loaded a pickle so far."""
        return [int(line) for line in self.path.read_text().split()] if self.path.exists() else []


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    path = tmp_path / "sung"
    monkeypatch.setenv("CANARY", str(path))
    return Canary(path)


def fleet_of(
    canary: Canary, folder: Path, *, twin: str | None = None, args: tuple[str, ...] = ("--nworkers", "1")
) -> ServedFleet:
    command = (sys.executable, str(HERE / "twins.py"), twin) if twin is not None else None
    env = {"CANARY": str(canary.path)}
    return ServedFleet([HERE / "service_canary.py"], folder, args=args, env=env, command=command)


# ---------------------------------------------------------------------- through the API


def through_requests(fleet: ServedFleet, canary: Canary) -> None:
    """Bodies, parameters and headers."""
    payload = canary.payload
    pickled = {"Content-Type": "application/x-python-pickle"}
    assert fleet.request("POST", "/v1/canary/echo", payload, headers=pickled).status == 415
    canary.sent("body, as a pickle")
    assert fleet.request("POST", "/v1/canary/echo", payload).status == 400
    canary.sent("body, as if it were JSON")
    forms = {"text": payload.decode("latin-1").replace("\0", ""), "base64": base64.b64encode(payload).decode()}
    for name, text in forms.items():
        assert fleet.post("canary/echo", {"text": text}, wait=20).json()["result"] == text
        canary.sent(f"parameter, as {name}")
    key = base64.b64encode(payload).decode()[:255]
    assert fleet.post("canary/echo", {"text": "k"}, wait=20, Idempotency_Key=key).status == 200
    canary.sent("idempotency key")
    tags = ",".join(key[at : at + 60] for at in range(0, len(key), 60))
    fleet.post("canary/echo", {"text": "t"}, wait=20, Fleet_Tags=tags.replace("=", ""))
    canary.sent("tags")
    fleet.request("GET", "/v1/jobs?cursor=" + base64.urlsafe_b64encode(payload).decode().rstrip("="))
    canary.sent("cursor of a listing")
    fleet.request("GET", "/v1/jobs", headers={"Cookie": f"fleet_session={key}", "User-Agent": key})
    canary.sent("cookie and user agent")


def through_jobs(fleet: ServedFleet, canary: Canary) -> list[str]:
    """What functions return, raise and tell, shown on every page."""
    jobs = {
        name: fleet.post(f"canary/{name}", params, wait=20).json()
        for name, params in {"sing": {}, "give": {}, "fail": {}, "talk": {}}.items()
    }
    big = fleet.post("canary/sing", {"times": 3_000}, wait=20).json()
    assert {name: job["status"] for name, job in jobs.items()} == {
        "sing": "succeeded", "give": "failed", "fail": "failed", "talk": "succeeded",
    }  # fmt: skip
    assert jobs["give"]["error"]["cause"] == "result_not_serializable"
    assert jobs["fail"]["error"]["cause"] == "exception"
    ids = [job["job_id"] for job in (*jobs.values(), big)]
    for job_id in ids:
        read_everything(fleet, job_id)
    assert fleet.request("GET", f"/v1/jobs/{ids[0]}/result", headers={"Accept": "*/*"}).body == canary.payload
    canary.channels += ["result", "result nothing encodes", "exception and its arguments"]
    canary.channels += ["output, log records, progress", "result file"]
    return ids


def read_everything(fleet: ServedFleet, job_id: str) -> dict[str, Answer]:
    answers = {}
    for page in ("", "/result", "/attempts", "/events", "/logs"):
        for accept in ("application/json", "*/*", "text/plain", "application/x-python-pickle"):
            answers[f"{page} {accept}"] = fleet.request("GET", f"/v1/jobs/{job_id}{page}", headers={"Accept": accept})
    return answers


def through_clients(fleet: ServedFleet, ids: list[str], canary: Canary) -> None:
    """The SDK in this process, the command line in its own."""
    with Client(fleet.url, fleet.token) as client:
        for job_id in ids:
            job = client.job(job_id)
            with contextlib.suppress(FleetError):
                job.result(20)
            list(job.events())
            job.attempts()
            job.story()
            job.logs()
    canary.sent("the SDK")
    sing, _, fail, talk, _ = ids
    for args in (["show", fail], ["show", fail, "--story"], ["result", sing, "--output", "-"], ["logs", talk], ["list"]):
        run_cli(fleet, "jobs", *args)
    canary.sent("the command line")


def clean_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}


def run_cli(fleet: ServedFleet, *args: str) -> subprocess.CompletedProcess[bytes]:
    env = {**clean_env(), "FLEET_URL": fleet.url, "FLEET_TOKEN_FILE": str(fleet.data_dir / "token")}
    return subprocess.run([COMMAND, *args], env=env, capture_output=True, timeout=60, check=False)


# ---------------------------------------------------------------------- through files


def through_files(fleet: ServedFleet, big: str, talker: str, canary: Canary) -> None:
    """The data folder while nobody looks: results, spool, outbox, logs, ledger, the files that clients read."""
    payload = canary.payload
    fleet.terminate()
    fleet.until(lambda: not fleet.processes(), "everything to end")
    folder = fleet.data_dir
    (stored,) = list((folder / "results").rglob("*.bin"))
    stored.write_bytes(payload)
    canary.sent("tampered result file")
    (folder / "spool" / ("a" * 32)).write_bytes(payload)
    canary.sent("spool file")
    (folder / "agent-outbox").mkdir(exist_ok=True)
    (folder / "agent-outbox" / "1-1.outcome").write_bytes(payload)
    canary.sent("outbox file")
    logs = [path for path in (folder / "logs").rglob("*") if path.is_file()]
    for path in logs:
        path.write_bytes(payload)
    assert logs
    canary.sent("tampered log file")
    with contextlib.closing(apsw.Connection(str(folder / "ledger.db"))) as ledger:
        text = json.dumps({"by": payload.decode("latin-1"), "__reduce__": base64.b64encode(payload).decode()})
        ledger.execute("UPDATE events SET data = ? WHERE kind = 'accepted'", (text,))
        ledger.execute("UPDATE results SET body = ? WHERE body IS NOT NULL AND media_type != 'application/json'", (payload,))
    canary.sent("event in the ledger")
    canary.sent("result in the ledger")
    fleet.restart()
    refused = fleet.request("GET", f"/v1/jobs/{big}/result", headers={"Accept": "*/*"})
    assert refused.status == 500
    assert refused.json()["code"] == "result_corrupt"
    assert payload not in refused.body
    for job_id in (big, talker):
        read_everything(fleet, job_id)
    (folder / "server.json").write_bytes(payload)
    canary.sent("server file")
    asked = subprocess.run(
        [COMMAND, "jobs", "list"], cwd=folder.parent, env=clean_env(), capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in asked.stderr


# ---------------------------------------------------------------------- through agents


def through_agents(fleet: ServedFleet, canary: Canary) -> None:
    """Frames of an agent that lies: raw pickles, a hostile greeting, outcomes whose bytes say they are something else."""
    asyncio.run(_lie(fleet, canary))


async def _lie(fleet: ServedFleet, canary: Canary) -> None:
    payload = canary.payload
    token = (fleet.data_dir / "agent.token").read_text("ascii").strip()
    url = fleet.url.replace("http://", "ws://") + "/v1/agents"
    for message in (payload, msgspec.msgpack.encode([msgspec.msgpack.Ext(0, payload)]), pickle.dumps([{"op": "register"}])):
        async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
            await socket.send(message)
            await asyncio.wait_for(socket.wait_closed(), 20)
    canary.sent("raw frames of an agent")
    forms = {
        "application/x-npy": npy_of_objects(canary),
        "application/vnd.apache.arrow.stream": arrow_of_python_type(payload),
        "application/x-python-pickle": payload,
        "image/png": payload,
    }
    async with FakeAgent(fleet.url, token, agent="local-liar", slots=len(forms)) as agent:
        agent._hello = Hello(
            protocol=PROTOCOL_VERSION, agent="local-liar", name="local", pid=0, slots=len(forms), ledger_id="", held=[],
            python=payload.decode("latin-1"), packages={"dask": base64.b64encode(payload).decode()},
        )  # fmt: skip
        assert agent._socket is not None
        await agent._socket.close()
    async with FakeAgent(fleet.url, token, agent="local-liar", slots=len(forms)) as agent:
        await agent.ready()
        ids = []
        for number in range(len(forms)):
            answer = await asyncio.to_thread(fleet.post, "canary/echo", {"text": f"lie {number}"})
            ids.append(answer.json()["job_id"])
        starts = await agent.take(Start, len(forms))
        await agent.send(LogChunk(starts[0].seq, starts[0].run, starts[0].attempt, "stdout", 0, payload))
        for start, (media_type, body) in zip(starts, forms.items(), strict=True):
            digest = hashlib.sha256(body).hexdigest()
            outcome = msgspec.structs.replace(
                succeeded(start, b""), media_type=media_type, body=body, size=len(body), digest=digest
            )
            assert isinstance(outcome, Outcome)
            await agent.deliver(outcome)
        for job_id in ids:
            await asyncio.to_thread(read_everything, fleet, job_id)
            await asyncio.to_thread(fetch, fleet, job_id)
        await asyncio.to_thread(run_cli, fleet, "jobs", "result", ids[0])
    canary.sent("greeting of an agent")
    canary.sent("log chunk of an agent")
    for media_type in forms:
        canary.sent(f"outcome that says it is {media_type}")


def fetch(fleet: ServedFleet, job_id: str) -> None:
    """Have the SDK read a result, whatever it makes of it."""
    refusals = (FleetError, ValueError, OSError, pa.ArrowException)
    with Client(fleet.url, fleet.token) as client, contextlib.suppress(*refusals):
        client.job(job_id).result(20)


def npy_of_objects(canary: Canary) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([service_canary.Song()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def arrow_of_python_type(payload: bytes) -> bytes:
    """Return a stream whose column says that it is of a pickled Python type, as pyarrow once wrote them."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    schema = pa.schema([pa.field("x", pa.int64(), metadata=metadata)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    return bytes(sink.getvalue())


# ---------------------------------------------------------------------- through a server that lies


@contextlib.contextmanager
def lying_server(payload: bytes) -> Iterator[str]:
    """Answer whatever is asked with a pickle."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-python-pickle")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_POST = do_DELETE = do_GET  # noqa: N815 - the names that the base class looks for

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def through_a_lying_server(canary: Canary) -> None:
    with lying_server(canary.payload) as url, Client(url, "fleet_" + "A" * 43, patience_s=0) as client:
        for ask in (client.services, client.status, lambda: client.job("x"), lambda: list(client.jobs())):
            with contextlib.suppress(FleetError, ValueError, KeyError):
                ask()
        env = {**os.environ, "FLEET_URL": url, "FLEET_TOKEN": "fleet_" + "A" * 43}
        subprocess.run([COMMAND, "jobs", "show", "x"], env=env, capture_output=True, timeout=60, check=False)
    canary.sent("answers of a server that lies")


# ---------------------------------------------------------------------- the promise


def control_plane(fleet: ServedFleet) -> set[int]:
    """Return the processes that must run no code of users: all but the workers."""
    workers = set(fleet.worker_pids())
    return {process.pid for process in fleet.processes()} - workers


def test_no_canary_sings_in_the_control_plane(canary: Canary, tmp_path: Path, record_property: Record) -> None:
    with fleet_of(canary, tmp_path / ".fleet") as fleet:
        workers = set(fleet.worker_pids())
        through_requests(fleet, canary)
        ids = through_jobs(fleet, canary)
        through_clients(fleet, ids, canary)
        through_files(fleet, ids[-1], ids[3], canary)
        workers |= set(fleet.worker_pids())
    with fleet_of(canary, tmp_path / "agents", args=("--no-agent",)) as fleet:
        through_agents(fleet, canary)
    through_a_lying_server(canary)
    sung = canary.pids()
    assert sung == [], f"pids {sung} (workers: {workers}, this process: {os.getpid()})"
    record_property("figures", f"0 of {len(canary.channels)} channels ran a pickle")
    assert len(canary.channels) == len(set(canary.channels)) >= 12


def test_the_canary_is_alive(canary: Canary, tmp_path: Path) -> None:
    """A function may unpickle: then it is a worker's process that turns up, and the checker sees it."""
    with fleet_of(canary, tmp_path / "data") as fleet:
        pid = fleet.post("canary/load", {"data": canary.payload.hex()}, wait=20).json()["result"]
        assert canary.pids() == [pid]
        assert pid in fleet.worker_pids()
        assert pid not in control_plane(fleet)


@pytest.mark.parametrize("twin", ["unpickles-bodies", "unpickles-results"])
def test_the_checker_notices_a_server_that_unpickles(
    canary: Canary, tmp_path: Path, twin: str, record_property: Record
) -> None:
    with fleet_of(canary, tmp_path / "data", twin=twin) as fleet:
        server = fleet.server_pid()
        if twin == "unpickles-bodies":
            pickled = {"Content-Type": "application/x-python-pickle"}
            fleet.request("POST", "/v1/canary/echo", canary.payload, headers=pickled)
        else:
            job_id = fleet.post("canary/sing", {}).json()["job_id"]
            deadline = time.monotonic() + 20
            while not canary.pids() and time.monotonic() < deadline:
                fleet.job(job_id, wait=1)
        record_property("figures", f"{twin}: sung by {'the server' if server in canary.pids() else canary.pids()}")
        assert server in canary.pids()
        assert set(canary.pids()) & control_plane(fleet)
