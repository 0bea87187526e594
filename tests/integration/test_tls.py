"""TLS through the whole of a real fleet: server, local agent, SDK."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.core_fleet import CORE, CoreFleet

from dask_fleet.client import Client
from dask_fleet.config.fingerprint import fingerprint_of
from dask_fleet.config.trust import Trust
from dask_fleet.server.tls_auto import ensure_certificate


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreFleet]:
    folder = tmp_path_factory.mktemp("tls")
    with CoreFleet(folder, args=("--nworkers", "1", "--tls", "auto", "--host", "0.0.0.0")) as made:
        yield made


def shown_key(fleet: CoreFleet, *, at: str = "127.0.0.1") -> str:
    """Return the fingerprint that the server shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((at, port_of(fleet)), 10) as plain, context.wrap_socket(plain) as secure:
        certificate = secure.getpeercert(binary_form=True)
        assert certificate is not None
        return fingerprint_of(certificate)


def port_of(fleet: CoreFleet) -> int:
    return int(fleet.url.rpartition(":")[2])


def test_a_call_over_tls(fleet: CoreFleet) -> None:
    assert fleet.url.startswith("https://127.0.0.1:")
    assert fleet.fingerprint == shown_key(fleet)
    certificate = fleet.data_dir / "tls" / "cert.pem"
    for trust in ({"fingerprint": fleet.fingerprint}, {"ca_file": certificate}):
        with Client(fleet.url, fleet.token, **trust) as client:  # type: ignore[arg-type]
            assert client.core.quick(name="over tls").result(timeout=30) == "over tls"
    banner = (fleet.data_dir / "serve.out").read_text()
    assert f"https://{socket.gethostname()}:{port_of(fleet)}/signin?code=" in banner
    assert str(fleet.fingerprint) in banner
    cookie = fleet.request("GET", f"/signin?code={banner.partition('code=')[2].partition(' ')[0]}").headers["set-cookie"]
    assert "Secure" in cookie


def test_clear_text_and_old_protocols_get_nothing(fleet: CoreFleet) -> None:
    with socket.create_connection(("127.0.0.1", port_of(fleet)), 10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            answer = plain.recv(1 << 16)
        except ConnectionResetError:
            answer = b""
        assert b"HTTP" not in answer
    old = Trust(fingerprint=fleet.fingerprint).context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port_of(fleet)), 10) as plain, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(plain)


def test_handshakes_without_end_keep_nobody_else_out(fleet: CoreFleet) -> None:
    """Half a greeting from as many sockets as one address may not have; another address and the fleet's own agent go on."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    before = fleet.status()["edge"]["connections_refused_total"]["peer"]
    context = Trust(fingerprint=fleet.fingerprint).context()
    with contextlib.ExitStack() as stack:
        for _ in range(700):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(fleet)), 10, ("127.0.0.3", 0)))
            with contextlib.suppress(OSError):  # it may have been sent away already
                sock.sendall(hello)
        with socket.create_connection(("127.0.0.1", port_of(fleet)), 10) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert secure.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert fleet.post("core/quick", {"name": "beside"}, wait=30).json()["status"] == "succeeded"
        edge = fleet.status()["edge"]
        assert edge["connections_refused_total"]["peer"] - before >= 700 - 512 - 64
        assert edge["connections"] <= 512 + 64 + 20
    fleet.until(lambda: fleet.status()["edge"]["connections"] < 20, "the handshakes to be gone")


def test_the_key_outlives_the_server(fleet: CoreFleet) -> None:
    before = fleet.fingerprint
    agent = fleet.agent_pid()
    fleet.kill9()
    fleet.restart()
    assert fleet.fingerprint == before == shown_key(fleet)
    fleet.until(lambda: any(each["connected"] for each in fleet.status()["agents"]), "the agent to come back")
    assert fleet.agent_pid() == agent


def test_a_certificate_is_replaced_while_jobs_run(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path / "in use", ["127.0.0.1"])
    news = [ensure_certificate(tmp_path / name, ["127.0.0.1", f"{name}.example.org"]) for name in ("second", "third")]
    args = ("--nworkers", "1", "--tls-cert", str(certificate), "--tls-key", str(key))
    with CoreFleet(tmp_path, args=args) as fleet:
        first = shown_key(fleet)
        job = fleet.post("core/gated", {"name": "over both"}).json()["job_id"]
        fleet.until_started("over both")

        def put(which: int) -> None:
            for source, target in zip(news[which], (certificate, key), strict=True):
                draft = target.with_suffix(".new")
                draft.write_bytes(source.read_bytes())
                draft.replace(target)

        certificate.write_text("rubbish")
        fleet.until(lambda: "tls_reload_failed" in fleet.logs(), "the refusal of rubbish")
        assert shown_key(fleet) == first
        put(0)  # seen by watching
        fleet.until(lambda: shown_key(fleet) != first, "the second certificate")
        second = shown_key(fleet)
        put(1)
        os.kill(fleet.server_pid(), signal.SIGHUP)
        fleet.until(lambda: shown_key(fleet) not in {first, second}, "the third certificate")
        fleet.wait_ready()  # reads the fingerprint anew from server.json
        fleet.open_gate("over both")
        assert fleet.ended(job)["status"] == "succeeded"
        assert fleet.request("GET", "/healthz", headers={"Host": "third.example.org"}).status == 200
        assert fleet.request("GET", "/healthz", headers={"Host": "fourth.example.org"}).status == 421


def test_other_addresses_without_tls_are_refused(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("dask-fleet")), "serve", str(CORE), "--port", "0"]
    done = subprocess.run(
        [*command, "--host", "0.0.0.0", "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "without TLS" in done.stderr
    assert "--tls auto" in done.stderr
    assert not (tmp_path / "ledger.db").exists()
