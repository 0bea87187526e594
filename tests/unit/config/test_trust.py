"""Who is trusted, and that nothing is said to anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from dask_fleet.client import AsyncClient
from dask_fleet.config.discovery import load_client
from dask_fleet.config.fingerprint import fingerprint_of, parse_fingerprint
from dask_fleet.config.trust import Trust, WrongKeyError, explain
from dask_fleet.model.errors import ConfigError, UntrustedServer
from dask_fleet.server.tls_auto import ensure_certificate

OTHER = "sha256:" + "0" * 64


class Listener:
    """Speaks TLS and keeps every byte it is told."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = ensure_certificate(folder, ["localhost", "127.0.0.1"])
        self.fingerprint = fingerprint_of(ssl.PEM_cert_to_DER_cert(self.certificate.read_text()))
        self.heard = bytearray()
        self.busy = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Listener]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        async with server:
            self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            async with asyncio.timeout(20):
                while self.busy:  # noqa: ASYNC110 - for tests
                    await asyncio.sleep(0.005)  # the clients have closed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.busy += 1
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.heard += data
                if b"\r\n\r\n" in self.heard:
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.busy -= 1


@pytest.mark.parametrize("how", ["pinned", "ca"])
def test_the_right_server_is_spoken_with(tmp_path: Path, how: str) -> None:
    async def scene() -> None:
        async with Listener(tmp_path).open() as listener:
            trust = Trust(fingerprint=listener.fingerprint) if how == "pinned" else Trust(ca_file=listener.certificate)
            async with httpx.AsyncClient(verify=trust.context(), trust_env=False) as http:
                assert (await http.get(listener.url)).status_code == 204

    asyncio.run(scene())


@pytest.mark.parametrize("trust", [Trust(fingerprint=OTHER), Trust()], ids=["another key pinned", "no authority"])
def test_a_wrong_server_gets_not_one_byte(tmp_path: Path, trust: Trust) -> None:
    async def scene() -> None:
        async with Listener(tmp_path).open() as listener:
            client = AsyncClient(listener.url, "fleet_secret", fingerprint=trust.fingerprint, patience_s=20)
            with pytest.raises(UntrustedServer, match="refused to speak") as found:
                await client.status()
            await client.aclose()
            assert "fleet_secret" not in str(found.value)
            async with asyncio.timeout(10):
                with contextlib.suppress(ssl.SSLError, OSError):
                    await asyncio.open_connection("127.0.0.1", int(listener.url.rpartition(":")[2]), ssl=trust.context())
            assert bytes(listener.heard) == b""

    asyncio.run(scene())


def test_the_synchronous_way_is_checked_too(tmp_path: Path) -> None:
    listener = Listener(tmp_path)

    async def scene() -> None:
        async with listener.open():
            await asyncio.to_thread(ask)

    def ask() -> None:
        with httpx.Client(verify=Trust(fingerprint=OTHER).context(), trust_env=False) as http:
            with pytest.raises(httpx.ConnectError) as found:
                http.get(listener.url)
            assert "not the pinned" in (explain(found.value) or "")
        with httpx.Client(verify=Trust(fingerprint=listener.fingerprint).context(), trust_env=False) as http:
            assert http.get(listener.url).status_code == 204

    asyncio.run(scene())
    assert WrongKeyError.__mro__.index(ssl.SSLCertVerificationError) == 1


def test_one_way_to_trust_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        Trust(ca_file=tmp_path / "ca.pem", fingerprint=OTHER)
    with pytest.raises(ConfigError, match="cannot use the CA file"):
        Trust(ca_file=tmp_path / "missing.pem").context()


def test_a_fingerprint_is_of_one_form() -> None:
    assert parse_fingerprint(" SHA256:" + "AB" * 32 + "\n") == "sha256:" + "ab" * 32
    for text in ("", "sha256:", "ab" * 32, "sha1:" + "ab" * 20, "sha256:" + "g" * 64, "sha256:" + "ab" * 33):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            parse_fingerprint(text)


def announced(folder: Path, url: str, fingerprint: object = OTHER) -> None:
    (folder / ".fleet").mkdir(exist_ok=True)
    (folder / ".fleet" / "server.json").write_text(json.dumps({"url": url, "pid": 1, "fingerprint": fingerprint}))
    (folder / ".fleet" / "token").write_text("fleet_found")


def test_the_server_of_this_folder_is_pinned_and_gets_its_token(tmp_path: Path) -> None:
    announced(tmp_path, "https://10.9.8.7:8000")
    found = load_client({}, {}, tmp_path)
    assert (found.settings.url, found.settings.fingerprint) == ("https://10.9.8.7:8000", OTHER)
    assert found.settings.token is not None
    assert found.origins["fingerprint"].endswith("server.json")
    # Another server is not pinned to that key, and is not sent that token.
    elsewhere = load_client({"FLEET_URL": "https://10.9.8.8:8000"}, {}, tmp_path)
    assert elsewhere.settings.fingerprint is None
    assert elsewhere.settings.token is None
    # What is named wins.
    mine = "sha256:" + "1" * 64
    assert load_client({"FLEET_FINGERPRINT": mine}, {}, tmp_path).settings.fingerprint == mine
    assert load_client({"FLEET_CA_FILE": "ca.pem"}, {}, tmp_path).settings.fingerprint is None


def test_an_announced_key_that_is_none_is_not_passed_over_silently(tmp_path: Path) -> None:
    announced(tmp_path, "https://10.9.8.7:8000", "sha256:short")
    found = load_client({}, {}, tmp_path)
    assert found.origins["url"] == "default"  # that file names no server we could trust
    assert load_client({"FLEET_URL": "https://10.9.8.7:8000"}, {}, tmp_path).settings.token is None
