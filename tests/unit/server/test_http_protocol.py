"""Limits and deadlines of a connection, on real sockets: what comes late, too large, too often, or is no HTTP at all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest
from tests.unit.server.edge_rig import SHORT, EdgeRig, heard, status_of

from dask_fleet.server.admission import RESERVED
from dask_fleet.server.deadlines import Deadlines
from dask_fleet.server.http_protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from dask_fleet.server.tls_listener import HANDSHAKE_S

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture
def rig() -> Iterator[EdgeRig]:
    with EdgeRig() as rig:
        yield rig


def get(path: str = "/", *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def post(path: str, length: int, body: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (path.encode(), HOST, JSON, length, body)


# ---------------------------------------------------------------------- time


def test_the_deadlines_are_those_that_are_told() -> None:
    """The other tests are in a hurry; these are the numbers of ``docs/how-to/operate.md``."""
    assert Deadlines() == Deadlines(
        head_s=10.0, body_s=30.0, body_bytes_per_s=1_000, idle_s=5.0, stall_s=30.0, leaving_s=2.0
    )
    assert HANDSHAKE_S == 10.0
    assert (MAX_HEAD_BYTES, MAX_HEADERS) == (32 << 10, 100)


def took(sock: socket.socket) -> tuple[float, bytes]:
    begin = time.monotonic()
    data = heard(sock)
    return time.monotonic() - begin, data


def test_a_silent_connection_is_closed_without_a_word(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        seconds, data = took(sock)
    assert data == b""
    assert seconds >= SHORT.head_s


@pytest.mark.parametrize("trickle", [b"GET /a", b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: z", b"\r\n\r\n"])
def test_a_head_that_trickles_is_closed_however_often_it_says_something(rig: EdgeRig, trickle: bytes) -> None:
    with rig.dial() as sock:
        sock.sendall(trickle)
        sock.settimeout(0.05)
        begin = time.monotonic()
        while time.monotonic() - begin < 20:
            try:
                if not sock.recv(100):
                    break
            except TimeoutError:
                pass
            try:
                sock.sendall(b"\r\n" if trickle.endswith(b"\n") else b"a")
            except OSError:
                break
        assert SHORT.head_s <= time.monotonic() - begin < 10


def test_an_idle_connection_is_closed_and_a_used_one_is_kept(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        begin = last = time.monotonic()
        while time.monotonic() - begin < 2 * (SHORT.idle_s + SHORT.head_s):
            sock.sendall(get("/a"))
            assert sock.recv(65_536).endswith(b"/a")
            last = time.monotonic()
            time.sleep(0.05)
        data = heard(sock)
    assert data == b""
    assert time.monotonic() - last >= SHORT.idle_s


def test_empty_lines_do_not_keep_an_idle_connection(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/a"))
        assert sock.recv(65_536)
        sock.settimeout(0.05)
        for _ in range(400):
            try:
                sock.sendall(b"\r\n")
                if not sock.recv(10):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("it is still open")


@pytest.mark.parametrize("path", ["/body", "/wait"])
def test_a_late_body_is_told(rig: EdgeRig, path: str) -> None:
    with rig.dial() as sock:
        sock.sendall(post(path, 100, b"{"))
        seconds, data = took(sock)
    assert seconds >= SHORT.body_s
    head, _, body = data.partition(b"\r\n\r\n")
    assert status_of(head) == 408
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "request_timeout"
    rig.until(lambda: rig.application.log in (["disconnected"], ["left"]), "the application to let go")


def test_an_upload_may_take_long_if_it_keeps_its_rate(rig: EdgeRig) -> None:
    begin = time.monotonic()
    with rig.dial() as sock:
        sock.sendall(post("/upload", 6_000))
        while time.monotonic() - begin < 3 * SHORT.body_s and rig.application.log == []:
            sock.sendall(b" " * 100)  # 2,000 bytes a second, or what the machine has time for
            time.sleep(0.05)
            if (sent := time.monotonic() - begin) > 2.5 * SHORT.body_s:
                assert sent
                break
        assert rig.application.log == []
        seconds, data = took(sock)  # and now it says nothing
    assert status_of(data) == 408
    assert seconds >= 0


def test_a_client_that_does_not_read_is_dropped_and_holds_little(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/large"))
        rig.until(lambda: rig.edge.admission.total == 0, "the connection to be dropped")
        rig.until(lambda: rig.application.log == ["sent"], "the application to come to its end")
        # By a reset: else the kernel would go on offering what it holds, for minutes.
        rig.until(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\x01", "the reset to arrive")


def test_a_client_that_reads_slowly_is_served(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/large"))
        total = 0
        begin = time.monotonic()
        while time.monotonic() - begin < 3 * SHORT.stall_s:
            total += len(sock.recv(100_000))
            time.sleep(0.01)
        before = total
        while b"0\r\n\r\n" not in (piece := sock.recv(1 << 20)):
            assert piece
            total += len(piece)
        assert total > before


def test_a_held_answer_has_no_deadline(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/wait"))
        sock.settimeout(2 * (SHORT.head_s + SHORT.body_s))
        with pytest.raises(TimeoutError):
            sock.recv(1)
    rig.until(lambda: rig.application.log == ["left"], "the application to be told")


# ---------------------------------------------------------------------- size


def test_large_heads_are_refused(rig: EdgeRig) -> None:
    fits = MAX_HEAD_BYTES - 100
    assert status_of(rig.ask(get("/x", "A: " + "a" * fits, "Connection: close"))) == 200
    for request in (
        get("/x", "A: " + "a" * (MAX_HEAD_BYTES + 1)),
        get("/" + "x" * (MAX_HEAD_BYTES + 1)),
        get("/x", *(f"A{n}: b" for n in range(MAX_HEADERS + 1))),
        b"GET / HTTP/1.1\r\nA: " + b"a" * 10 * MAX_HEAD_BYTES,  # without an end
    ):
        answer = rig.ask(request)
        assert status_of(answer) == 431, answer[:200]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "headers_too_large"


def test_a_large_body_before_a_pipelined_head_is_not_counted_to_it(rig: EdgeRig) -> None:
    answer = rig.ask(post("/body", 500_000, b" " * 500_000) + get("/next", "Connection: close"))
    assert answer.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "rest",
    [
        b"1;" + b"a" * 200_000,
        b"1\r\nx\r\n0\r\nTrailer: " + b"a" * 200_000,
        b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 40_000,
        b"0" * 200_000,
    ],
)
def test_framing_without_content_is_refused(rig: EdgeRig, rest: bytes) -> None:
    head = b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    assert status_of(rig.ask(head, rest)) == 400


def test_trailers_are_no_headers(rig: EdgeRig) -> None:
    head = b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert rig.ask(head + b"1\r\n1\r\n0\r\nAuthorization: x\r\n\r\n").endswith(b"\r\n\r\n1")
    assert b"authorization" not in dict(rig.application.scopes[0]["headers"])


def test_a_body_that_nobody_wants_is_not_read_to_its_end(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(post("/other", 1 << 30))
        sent = 0
        sock.settimeout(1.0)
        try:
            while sent < 1 << 26:
                sent += sock.send(b"x" * 65_536)
        except OSError:
            pass
        assert sent < 1 << 26
        sock.settimeout(20)
        assert heard(sock).startswith(b"HTTP/1.1 200")  # it has been answered all the same


def test_a_short_body_that_nobody_wants_does_not_cost_the_connection(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(post("/other", 5))
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
        sock.sendall(b"12345" + get("/again"))
        assert sock.recv(65_536).endswith(b"/again")


# ---------------------------------------------------------------------- pipelines


def test_pipelined_requests_are_answered_in_order_up_to_a_limit(rig: EdgeRig) -> None:
    answer = rig.ask(b"".join(get(f"/{n}") for n in range(500)))
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies[: MAX_PIPELINED] == [f"/{n}".encode() for n in range(MAX_PIPELINED)]
    assert len(bodies) <= 2 * MAX_PIPELINED
    assert b"connection: close" in answer.rpartition(b"HTTP/1.1 200 OK")[2]


def test_garbage_behind_a_request_does_not_cost_it_its_answer(rig: EdgeRig) -> None:
    answer = rig.ask(get("/first") + b"\0\0garbage\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"/first")


def test_every_pipelined_request_is_told_that_the_client_has_left(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/wait") + get("/wait"))
        rig.until(lambda: len(rig.application.scopes) == 1, "the first to begin")
    rig.until(lambda: rig.application.log == ["left"], "the first to be told")
    assert len(rig.application.scopes) == 1


# ---------------------------------------------------------------------- no HTTP

GARBAGE = {
    "http 0.9": b"GET /\r\n\r\n",
    "http 0.9 by number": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http 2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    "zeros": b"\0" * 1_000,
    "te and cl": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "cl and te": b"POST /body HTTP/1.1\r\n" + HOST + JSON + CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "equal lengths": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2, 2\r\n\r\n{}",
    "folded length": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length:\r\n 2\r\n\r\n{}",
    "negative length": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: -2\r\n\r\n{}",
    "signed length": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: +2\r\n\r\n{}",
    "huge length": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "unknown coding": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "spaced coding": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "negative chunk": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "long chunk": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
    "endless chunk": b"POST /body HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
    "cr in a header": get("/", "X: a\rb"),
    "nul in a header": get("/", "X: a\0b"),
    "nul in a name": get("/", "X\0: ab"),
    "folded header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "bare lf": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "absolute form": b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "authority form": b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "relative target": b"GET index HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "high bytes": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "no target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "small method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"HACK / HTTP/1.1\r\n" + HOST + b"\r\n",
    "not a version": b"GET / HTTP/1.x\r\n" + HOST + b"\r\n",
    "smtp": b"EHLO mail.example\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_request_is_refused_and_the_connection_closed(rig: EdgeRig, name: str) -> None:
    answer = rig.ask(GARBAGE[name])
    assert status_of(answer) == 400, answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
    assert rig.application.log in ([], ["disconnected"])


def test_an_upgrade_to_anything_else_is_served_as_if_not_asked(rig: EdgeRig) -> None:
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA")
    answer = rig.ask(get("/plain", *upgrade) + get("/b"))
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"/plain")


def test_http_1_0_is_served_and_closed(rig: EdgeRig) -> None:
    assert rig.ask(b"GET /old HTTP/1.0\r\nHost: x\r\n\r\n").endswith(b"/old")


def test_an_answer_cannot_be_split(rig: EdgeRig) -> None:
    answer = rig.ask(get("/split"))
    assert status_of(answer) == 500
    assert b"set-cookie" not in answer


def test_every_answer_has_the_security_headers(rig: EdgeRig) -> None:
    for request in (get("/", "Connection: close"), GARBAGE["zeros"], get("/split"), get("/", "A: " + "a" * 50_000)):
        head = rig.ask(request).partition(b"\r\n\r\n")[0].lower()
        for line in (
            b"x-content-type-options: nosniff",
            b"x-frame-options: deny",
            b"referrer-policy: no-referrer",
            b"cache-control: no-store",
            b"content-security-policy: default-src 'none'; frame-ancestors 'none'",
        ):
            assert head.count(line) == 1, (line, head)
        assert b"\r\nserver:" not in head
        assert b"strict-transport" not in head


# ---------------------------------------------------------------------- how many

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@pytest.mark.parametrize("limits", [{"max_connections": 5}, {"max_per_peer": 5}])
def test_beyond_the_limit_only_agents_get_in(limits: dict[str, int]) -> None:
    with EdgeRig(**limits) as rig:  # type: ignore[arg-type]
        open_now = [rig.dial() for _ in range(5)]
        socks = [one.__enter__() for one in open_now]
        for sock in socks:
            sock.sendall(get("/wait"))
        rig.until(lambda: len(rig.application.scopes) == 5, "all five to be served")
        answer = rig.ask(get("/"))
        assert status_of(answer) == 503
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_many_connections"
        with rig.dial() as agent:
            agent.sendall(get("/v1/agents", *UPGRADE))
            assert agent.recv(1_000).startswith(b"HTTP/1.1 101")
        if "max_per_peer" in limits:
            with rig.dial(source="127.0.0.2") as other:
                other.sendall(get("/other"))
                assert other.recv(1_000).endswith(b"/other")
        for one in open_now:
            one.__exit__(None, None, None)
        rig.until(lambda: rig.edge.admission.total == 0, "all to be gone")
        assert rig.ask(get("/", "Connection: close")).endswith(b"/")


def test_those_who_say_nothing_cannot_hold_the_agents_places() -> None:
    with EdgeRig(max_per_peer=5) as rig:
        socks = []
        try:
            for _ in range(5 + RESERVED + 20):
                sock = socket.create_connection(("127.0.0.1", rig.port), timeout=20)
                socks.append(sock)
            assert status_of(heard(socks[5])) == 503  # the first of those beyond the limit made room
            with rig.dial() as agent:
                agent.sendall(get("/v1/agents", *UPGRADE))
                assert agent.recv(1_000).startswith(b"HTTP/1.1 101")
        finally:
            for sock in socks:
                sock.close()


def test_a_websocket_is_counted_until_it_ends(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/v1/agents", *UPGRADE))
        answer = sock.recv(1_000)
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"x-frame-options: DENY" in answer
        time.sleep(2 * (SHORT.head_s + SHORT.idle_s))  # its silence is no business of the edge
        assert rig.edge.admission.total == 1
    rig.until(lambda: rig.edge.admission.total == 0, "it to be gone")
    rig.until(lambda: rig.application.log == ["websocket ended"], "the application to be told")


def test_a_websocket_does_not_begin_behind_an_unanswered_request(rig: EdgeRig) -> None:
    with rig.dial() as sock:
        sock.sendall(get("/wait") + get("/v1/agents", *UPGRADE))
        rig.until(lambda: len(rig.application.scopes) == 1, "the first to begin")
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    rig.until(lambda: rig.edge.admission.total == 0, "it to be gone")
