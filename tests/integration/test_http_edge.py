"""The edge of a real server: headers of every answer, streams over a restart, and descriptors that run out."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dask_fleet.client import Client
from dask_fleet.testing.served import ServedFleet

TARGET = Path(__file__).with_name("service_edge.py")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[ServedFleet]:
    args = ("--nworkers", "1", "--drain-timeout", "0s")
    with ServedFleet([TARGET], tmp_path / "data", args=args, env={"EDGE_GATE": str(tmp_path / "gate")}) as fleet:
        yield fleet
        (tmp_path / "gate").touch()


def test_every_page_has_the_security_headers_once(fleet: ServedFleet) -> None:
    job = fleet.post("edge/gated")
    link = job.json()["links"]
    pages = [
        ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/"), ("GET", "/docs"),
        ("GET", "/openapi.json"), ("GET", "/signin"), ("GET", "/v1/jobs"), ("GET", "/v1/status"),
        ("GET", "/v1/services"), ("GET", link["self"]), ("GET", "/v1/nothing"), ("GET", link["attempts"]),
        ("GET", "/v1/tokens"), ("POST", "/v1/signin"), ("OPTIONS", "/v1/edge/gated"), ("PUT", "/v1/jobs"),
        ("POST", "/v1/edge/gated"), ("HEAD", "/healthz"), ("DELETE", link["self"]),
    ]  # fmt: skip
    for method, path in pages:
        body = {} if method == "POST" and path != "/v1/signin" else None
        headers = fleet.request(method, path, body).headers
        for name, value in {
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
        }.items():
            assert headers[name] == value, (method, path, name)
        assert headers["cache-control"] in {"no-store", "private, no-cache"}, (method, path)
        assert "'none'" in headers["content-security-policy"], (method, path)
        assert not {"server", "x-powered-by", "strict-transport-security"} & set(headers), (method, path)


def test_streams_and_held_answers_end_with_the_server_and_go_on_with_the_next(fleet: ServedFleet) -> None:
    seen: list[str] = []
    with Client(fleet.url, fleet.token) as client, ThreadPoolExecutor(2) as pool:
        job = client.edge.gated()

        def follow() -> None:
            for event in job.events():
                seen.append(event.kind)  # noqa: PERF401 - the other thread looks on

        following = pool.submit(follow)
        fleet.until(lambda: "started" in seen, "the stream to tell of the start")
        held = pool.submit(fleet.job, job.job_id, wait=50)
        fleet.terminate(timeout_s=20)
        assert held.result(20)["status"] in {"running", "queued"}
        assert "timeout graceful shutdown" not in fleet.logs()
        fleet.restart()
        (fleet.data_dir.parent / "gate").touch()
        following.result(60)
    assert seen[0] == "accepted"
    assert seen[-1] == "succeeded"
    assert seen.count("accepted") == 1  # it went on where it was, and did not begin anew


def test_whom_the_edge_turned_away_is_counted_for_administrators(fleet: ServedFleet) -> None:
    made = fleet.request("POST", "/v1/tokens", {"user": "ann", "scopes": ["read"]}).json()
    reader, token_id = made["token"], made["token_id"]
    assert "edge" not in fleet.request("GET", "/v1/status", token=reader).json()
    assert fleet.request("DELETE", f"/v1/tokens/{token_id}").status == 200
    assert fleet.request("GET", "/v1/status", token=reader).status == 401
    assert fleet.request("GET", "/v1/status", token="fleet_" + "x" * 43).status == 401
    parts = urlsplit(fleet.url)
    with socket.create_connection((parts.hostname, parts.port), 10) as sock:
        sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n\0\r\n\r\n")
        while sock.recv(65_536):
            pass
    edge = fleet.status()["edge"]
    assert edge["tokens_refused_total"] == {"missing": 1, "unknown": 1, "expired": 0, "revoked": 1}
    assert edge["requests_refused_total"] == {"bad_request": 1}
    assert edge["connections_total"] > edge["connections"] >= 1
    assert edge["connections_refused_total"] == {"peer": 0, "server": 0}
    shown = subprocess.run(
        [Path(sys.executable).with_name("dask-fleet"), "status", "--url", fleet.url],
        env={**os.environ, "FLEET_TOKEN": fleet.token}, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    for words in ("0 queued", "1 missing, 1 unknown, 1 revoked", "1 bad_request", "connections"):
        assert words in shown, shown


def test_a_server_out_of_descriptors_neither_spins_nor_dies(fleet: ServedFleet) -> None:
    pid = fleet.server_pid()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    parts = urlsplit(fleet.url)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + 5, hard))
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(50):
                sock = stack.enter_context(socket.socket())
                sock.settimeout(5)
                sock.connect((parts.hostname, parts.port))
            before = _cpu_s(pid)
            time.sleep(2)  # what is measured is the time itself
            assert _cpu_s(pid) - before < 1.2
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    fleet.until(lambda: _answers(fleet), "the server to answer again")
    assert fleet.server_pid() == pid


def _answers(fleet: ServedFleet) -> bool:
    try:
        return fleet.request("GET", "/readyz", timeout_s=5).status == 200
    except OSError:
        return False


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
