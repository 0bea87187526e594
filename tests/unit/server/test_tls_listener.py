"""TLS handshakes on real sockets: they count as connections from the moment they are accepted, and have a deadline."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.unit.server.edge_rig import SHORT, EdgeRig, heard, status_of

from dask_fleet.server.admission import RESERVED
from dask_fleet.server.tls import TLS
from dask_fleet.server.tls_auto import ensure_certificate

HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40
GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
AGENT = (
    b"GET /v1/agents HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
UNHURRIED = replace(SHORT, head_s=30.0, idle_s=30.0)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return TLS(*ensure_certificate(tmp_path_factory.mktemp("tls"), ["127.0.0.1"]))


@contextlib.contextmanager
def secured(rig: EdgeRig, *, source: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with rig.dial(source=source) as sock, context.wrap_socket(sock) as secure:
        yield secure


@contextlib.contextmanager
def half_open(rig: EdgeRig, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(rig.dial()) for _ in range(count)]
        for sock in socks:
            with contextlib.suppress(OSError):  # it may have been sent away already
                sock.sendall(HALF_A_HELLO)
        yield socks


def still_open(socks: list[socket.socket]) -> int:
    count = 0
    for sock in socks:
        sock.setblocking(False)
        try:
            count += bool(sock.recv(1))
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


@pytest.mark.parametrize("limits", [{"max_connections": 10}, {"max_per_peer": 10}])
def test_handshakes_count_as_connections(tls: TLS, limits: dict[str, int]) -> None:
    with EdgeRig(UNHURRIED, tls=tls.context, **limits) as rig:  # type: ignore[arg-type]
        with half_open(rig, 300) as socks:
            rig.until(lambda: rig.edge.admission.entered == 300, "all to be accepted")
            rig.until(lambda: still_open(socks) == 10 + RESERVED, "those over the limits to be sent away")
            assert rig.edge.admission.total == 10 + RESERVED
            with secured(rig) as agent:  # agents get in all the same
                agent.sendall(AGENT)
                assert agent.recv(1_000).startswith(b"HTTP/1.1 101")
            with secured(rig) as other:
                other.sendall(GET)
                assert status_of(heard(other)) == 503
            if "max_per_peer" in limits:
                with secured(rig, source="127.0.0.2") as honest:
                    honest.sendall(GET)
                    assert honest.recv(1_000).endswith(b"/hello")
        rig.until(lambda: rig.edge.admission.total == 0, "all to be gone")
        refused = rig.edge.figures()["connections_refused_total"]
        assert refused["server" if "max_connections" in limits else "peer"] >= 300 - 10 - RESERVED
        assert rig.edge.handshakes_failed["disconnect"] > 0
        with secured(rig) as sock:
            sock.sendall(GET)
            assert sock.recv(1_000).endswith(b"/hello")


def test_a_handshake_has_a_deadline_and_what_is_no_tls_is_refused(tls: TLS) -> None:
    with EdgeRig(tls=tls.context) as rig:
        with rig.dial() as silent, rig.dial() as half:
            half.sendall(HALF_A_HELLO)
            assert heard(silent) == heard(half) == b""
        with rig.dial() as plain:
            plain.sendall(GET)
            assert b"HTTP" not in heard(plain)
        with rig.dial():
            pass
        rig.until(
            lambda: rig.edge.handshakes_failed == {"timeout": 2, "protocol": 1, "disconnect": 1}, "all four to be counted"
        )
        rig.until(lambda: rig.edge.admission.total == 0, "all to be gone")


def test_a_secured_connection_is_counted_once_and_watched(tls: TLS) -> None:
    with EdgeRig(tls=tls.context) as rig:
        with secured(rig) as sock:
            sock.sendall(GET)
            assert b"strict-transport-security" in sock.recv(1_000)
            assert rig.edge.admission.total == 1
            assert heard(sock) == b""  # idle
        rig.until(lambda: rig.edge.admission.total == 0, "it to be gone")
        assert rig.edge.figures()["connections_timed_out_total"]["idle"] == 1
        assert rig.edge.admission.entered == 1
