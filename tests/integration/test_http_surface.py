"""The HTTP API of a real server on raw sockets: what a proxy, a browser or an attacker may send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dask_fleet.testing.served import ServedFleet

MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    target = Path(__file__).with_name("service_http.py")
    with ServedFleet([target], tmp_path_factory.mktemp("http") / "data", args=("--nworkers", "1")) as fleet:
        yield fleet


def raw(fleet: ServedFleet, *pieces: bytes, limit: int = 1 << 16) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are, read until the server closes or the answer is complete; return status, headers, body."""
    parts = urlsplit(fleet.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
        except OSError:
            pass  # it has heard enough: what matters is what it says
        data = b""
        while b"\r\n\r\n" not in data and len(data) < limit:
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            piece = sock.recv(65536)
            if not piece:
                break
            body += piece
        return int(lines[0].split()[1]), headers, body


def head_of(fleet: ServedFleet, method: str, path: str, *lines: str, host: str | None = None) -> bytes:
    host = urlsplit(fleet.url).netloc if host is None else host
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {fleet.token}", *lines, "", ""]
    ).encode("latin-1")


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        ([], 400),
        (["localhost:1", "localhost:1"], 400),
        (["localhost:1", "evil.example"], 400),
        (["evil.example"], 421),
        (["127.0.0.1.evil.example"], 421),
        (["localhost/x"], 400),
        (["LOCALHOST"], 200),
        (["[::1]:99"], 200),
    ],
)
def test_hosts(fleet: ServedFleet, hosts: list[str], status: int) -> None:
    lines = [f"Host: {host}" for host in hosts]
    request = "\r\n".join(["GET /healthz HTTP/1.1", *lines, "", ""]).encode()
    assert raw(fleet, request)[0] == status


JSON = "Content-Type: application/json"


def test_a_body_of_honest_length_over_the_limit_is_refused_unread(fleet: ServedFleet) -> None:
    status, headers, body = raw(fleet, head_of(fleet, "POST", "/v1/http/double", JSON, f"Content-Length: {1 << 30}"))
    assert status == 413
    assert json.loads(body)["code"] == "body_too_large"
    assert headers["connection"] == "close"


def test_a_chunked_body_is_read_to_the_limit(fleet: ServedFleet) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    status, _, body = raw(
        fleet, head_of(fleet, "POST", "/v1/http/double", JSON, "Transfer-Encoding: chunked"), *[chunk] * 17
    )
    assert status == 413
    assert json.loads(body)["code"] == "body_too_large"


def test_a_chunked_body_within_the_limit_is_taken(fleet: ServedFleet) -> None:
    lines = (JSON, "Transfer-Encoding: chunked", "Prefer: wait=20")
    status, _, body = raw(
        fleet, head_of(fleet, "POST", "/v1/http/double", *lines), b'4\r\n{"n"\r\n', b"4\r\n:21}\r\n0\r\n\r\n"
    )
    assert (status, json.loads(body)["result"]) == (200, 42)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 8", "Content-Length: 9"),
        ("Content-Length: -1",),
        ("Content-Length: 8", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("X: a\rb",),
        ("X: a\0b",),
        ("X : y",),
        (" folded",),
    ],
)
def test_smuggling_and_broken_heads(fleet: ServedFleet, lines: tuple[str, ...]) -> None:
    before = fleet.request("GET", "/v1/jobs").json()
    status, _, _ = raw(fleet, head_of(fleet, "POST", "/v1/http/double", JSON, *lines), b'{"n": 1}')
    assert 400 <= status < 500
    assert fleet.request("GET", "/v1/jobs").json() == before


@pytest.mark.parametrize("path", ["/v1/jobs/x%0d%0aSet-Cookie:a=b", "/signin?code=%0d%0aX:y", "/v1/jobs?cursor=%0d%0aX:y"])
def test_nothing_of_a_request_becomes_a_header(fleet: ServedFleet, path: str) -> None:
    status, headers, _ = raw(fleet, head_of(fleet, "GET", path))
    assert status in {401, 404}
    assert not {"set-cookie", "x"} & set(headers)


BAD_BODIES = [
    b"{",
    b'{"n": NaN}',
    b'{"n": 1e400}',
    b"[" * 100_000,
    b'{"n": ' + b"9" * 5000 + b"}",
    b'{"n": 1, "n": 2}',
    b'{"n": "\\ud800"}',
    b'\xef\xbb\xbf{"n": 1}',
    b'{"n": 1}\0',
    b'\xff{"n": 1}',
]


def test_malformed_json_is_told_and_leaves_nothing(fleet: ServedFleet) -> None:
    pid = fleet.server_pid()
    before = fleet.request("GET", "/v1/jobs").json()
    for body in BAD_BODIES:
        answer = fleet.post("http/double", body)
        assert (answer.status, answer.json()["code"]) == (400, "bad_json"), body[:40]
    assert fleet.request("GET", "/v1/jobs").json() == before
    assert fleet.server_pid() == pid


@pytest.mark.parametrize(
    "query", ["&".join(f"x{n}" for n in range(100)), "refresh=%FF", "%00", "=", "refresh=true&refresh=x"]
)
def test_odd_query_strings_of_calls_are_told(fleet: ServedFleet, query: str) -> None:
    answer = fleet.request("POST", f"/v1/http/double?{query}", {"n": 1})
    assert (answer.status, answer.json()["code"]) == (400, "bad_request")


def test_parameters_that_do_not_fit_are_named(fleet: ServedFleet) -> None:
    answer = fleet.post("http/length", {"point": {"y": "a"}, "kind": "l3", "times": 10, "more": 1})
    assert (answer.status, answer.json()["code"]) == (422, "invalid_parameters")
    assert {error["loc"][0] for error in answer.json()["errors"]} == {"point", "kind", "times", "more"}


def test_large_results_in_all_forms(fleet: ServedFleet) -> None:
    job = fleet.post("http/blob", {"size": 1_000_000}, wait=20).json()
    assert (job["status"], job["result"], job["result_size"]) == ("succeeded", None, 1_000_000)
    link = job["links"]["result"]
    whole = fleet.request("GET", link)
    assert (whole.status, len(whole.body), whole.headers["content-type"]) == (200, 1_000_000, "application/octet-stream")
    part = fleet.request("GET", link, headers={"Range": "bytes=999990-"})
    assert (part.status, part.body) == (206, whole.body[-10:])
    head = fleet.request("HEAD", link)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "1000000")
    assert fleet.request("GET", link, headers={"If-None-Match": whole.headers["etag"]}).status == 304
    rendered = fleet.request("GET", link, headers={"Accept": "application/json"})
    assert rendered.headers["content-type"] == "application/json"
    assert set(rendered.json()) == {"$bytes", "media_type"}
    assert "content-length" not in rendered.headers  # it came in pieces


def test_a_client_that_leaves_a_large_answer_harms_nobody(fleet: ServedFleet) -> None:
    job = fleet.post("http/text", {"letters": "ab", "repeat": 1_000_000}, wait=20).json()
    parts = urlsplit(fleet.url)
    for accept in ("application/json", "text/plain"):
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
            sock.sendall(head_of(fleet, "GET", job["links"]["result"], f"Accept: {accept}"))
            assert sock.recv(1000)
    fleet.until(
        lambda: not [process for process in fleet.processes() if "codecs.render" in process.command],
        "the rendering process to end",
    )
    assert fleet.request("GET", "/healthz").body == b"ok"
    assert fleet.logs().count("Traceback") == 0, fleet.logs()


def test_events_of_a_real_job(fleet: ServedFleet) -> None:
    job = fleet.post("http/steps", {"count": 3}, wait=20).json()
    answer = fleet.request("GET", job["links"]["events"])
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [line.removeprefix(b"event: ").decode() for line in answer.body.splitlines() if line.startswith(b"event: ")]
    assert [kind for kind in kinds if kind != "progress"] == ["accepted", "started", "succeeded"]
    attempts = fleet.request("GET", job["links"]["attempts"]).json()["attempts"]
    assert [(one["attempt"], one["status"]) for one in attempts] == [(1, "succeeded")]


def test_the_printed_link_signs_a_browser_in_once(fleet: ServedFleet) -> None:
    printed = (fleet.data_dir / "serve.out").read_text()
    path = next(word for word in printed.split() if "/signin?code=" in word).removeprefix(fleet.url)
    host = urlsplit(fleet.url).netloc
    status, headers, _ = raw(fleet, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (status, headers["location"]) == (303, "/docs")
    cookie = headers["set-cookie"].partition(";")[0]
    request = f"GET /docs HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n".encode()
    status, _, body = raw(fleet, request)
    assert status == 200
    assert b"/v1/http/double" in body
    assert raw(fleet, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())[0] == 401


def test_no_token_reaches_the_logs(fleet: ServedFleet) -> None:
    fleet.request("GET", f"/v1/jobs/{fleet.token}")
    fleet.request("GET", f"/v1/jobs?token={fleet.token}")
    secret = fleet.token.removeprefix("fleet_")
    assert secret not in fleet.logs()
    for path in fleet.data_dir.rglob("*"):
        if path.is_file() and path.name != "token":
            assert secret.encode() not in path.read_bytes(), path
