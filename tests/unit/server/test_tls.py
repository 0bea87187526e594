"""The server's certificate: made, kept, renewed and replaced."""

from __future__ import annotations

import contextlib
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dask_fleet.config.fingerprint import fingerprint_of
from dask_fleet.config.settings import Settings
from dask_fleet.config.trust import Trust
from dask_fleet.model.errors import BadRequest, BindRefused, ConfigError, HostNotAllowed, SetupError
from dask_fleet.server.hosts import HostCheck
from dask_fleet.server.listening import local_url, public_url, refuse_open_bind
from dask_fleet.server.tls import TLS, make_tls, own_names
from dask_fleet.server.tls_auto import RENEW_BEFORE, VALID_FOR, ensure_certificate

NAMES = ["localhost", "127.0.0.1", "::1"]


def test_key_and_certificate_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    certificate, key = ensure_certificate(folder, NAMES)
    before = (certificate.read_bytes(), key.read_bytes())
    assert ensure_certificate(folder, list(reversed(NAMES))) == (certificate, key)
    assert (certificate.read_bytes(), key.read_bytes()) == before
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert set(TLS(certificate, key).names) == set(NAMES)


def test_a_renewed_certificate_has_the_same_fingerprint(tmp_path: Path) -> None:
    certificate, key = ensure_certificate(tmp_path, NAMES)
    first = certificate.read_bytes()
    fingerprint = TLS(certificate, key).fingerprint
    made = datetime.now(UTC)
    ensure_certificate(tmp_path, NAMES, now=made + VALID_FOR - RENEW_BEFORE - timedelta(days=1))
    assert certificate.read_bytes() == first  # not yet
    ensure_certificate(tmp_path, NAMES, now=made + VALID_FOR - RENEW_BEFORE + timedelta(days=1))
    renewed = certificate.read_bytes()
    assert renewed != first
    assert TLS(certificate, key).fingerprint == fingerprint
    ensure_certificate(tmp_path, [*NAMES, "fleet.example.org"])
    assert certificate.read_bytes() != renewed
    tls = TLS(certificate, key)
    assert tls.fingerprint == fingerprint
    assert "fleet.example.org" in tls.names


@pytest.mark.parametrize("left", [b"", b"half a certificate"])
def test_a_broken_certificate_of_ours_is_made_anew(tmp_path: Path, left: bytes) -> None:
    certificate, key = ensure_certificate(tmp_path, NAMES)
    fingerprint = TLS(certificate, key).fingerprint
    certificate.write_bytes(left)
    ensure_certificate(tmp_path, NAMES)
    assert TLS(certificate, key).fingerprint == fingerprint


def test_a_key_that_is_not_ours_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("not a key")
    with pytest.raises(SetupError, match="remove it to have another made"):
        ensure_certificate(tmp_path, NAMES)
    assert (tmp_path / "key.pem").read_text() == "not a key"


def pair(folder: Path) -> tuple[Path, Path]:
    """A pair of which nothing but the files is known."""
    certificate, key = ensure_certificate(folder, NAMES)
    return certificate, key


def put(source: Path, target: Path) -> None:
    draft = target.with_suffix(".new")
    draft.write_bytes(source.read_bytes())
    draft.replace(target)


def test_a_new_pair_is_taken_and_a_bad_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = pair(tmp_path / "a")
    other_certificate, other_key = pair(tmp_path / "b")
    tls = TLS(certificate, key)
    context, first = tls.context, tls.fingerprint
    assert not tls.refresh()
    put(other_certificate, certificate)  # half of a replacement: the key does not fit
    assert not tls.refresh()
    assert tls.fingerprint == first
    assert [record.__dict__["action"] for record in caplog.records] == ["tls_reload_failed"]
    assert not tls.refresh()
    assert len(caplog.records) == 1  # said once
    put(other_key, key)
    assert tls.refresh()
    assert tls.fingerprint == TLS(other_certificate, other_key).fingerprint != first
    assert tls.context is context
    certificate.unlink()
    assert not tls.refresh()
    assert tls.fingerprint != first


def test_an_encrypted_key_is_refused_and_never_asked_for(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path)
    locked = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(locked, ec.EllipticCurvePrivateKey)
    encryption = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(
        locked.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    with pytest.raises(SetupError, match="encrypted"):
        TLS(certificate, key)


def test_the_files_may_be_one(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert TLS(both, None).fingerprint == TLS(certificate, key).fingerprint


def test_old_protocols_and_weak_ciphers_are_off(tmp_path: Path) -> None:
    context = TLS(*pair(tmp_path)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert all(cipher["aead"] for cipher in context.get_ciphers())
    assert not [cipher for cipher in context.get_ciphers() if cipher["kea"] == "kx-rsa"]


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    assert make_tls(Settings(), tmp_path) is None
    with pytest.raises(ConfigError, match="choose one"):
        make_tls(Settings(tls="auto", tls_cert=tmp_path / "c"), tmp_path)
    with pytest.raises(ConfigError, match="needs --tls-cert"):
        make_tls(Settings(tls_key=tmp_path / "k"), tmp_path)
    with pytest.raises(SetupError, match="cannot read"):
        make_tls(Settings(tls_cert=tmp_path / "missing.pem"), tmp_path)
    made = make_tls(Settings(tls="auto", host="10.1.2.3", allowed_hosts=("fleet.example.org",)), tmp_path)
    assert made is not None
    assert {"10.1.2.3", "fleet.example.org", "localhost"} <= set(made.names)
    assert [path.name for path in tmp_path.iterdir()] == ["tls"]


def test_other_addresses_need_tls() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        refuse_open_bind(host, secure=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "fleet.example.org"):
        with pytest.raises(BindRefused, match="--tls auto"):
            refuse_open_bind(host, secure=False)
        refuse_open_bind(host, secure=True)
    assert BindRefused.exit_code == 78


def test_urls(tmp_path: Path) -> None:
    tls = TLS(*ensure_certificate(tmp_path, ["*.example.org", "fleet.example.org", "localhost"]))
    assert local_url("127.0.0.1", 1, secure=False) == "http://127.0.0.1:1"
    assert local_url("0.0.0.0", 1, secure=True) == "https://127.0.0.1:1"
    assert local_url("::", 1, secure=True) == "https://[::1]:1"
    assert public_url("0.0.0.0", 1, tls) == "https://fleet.example.org:1"
    assert public_url("10.1.2.3", 1, tls) == "https://10.1.2.3:1"
    assert "0.0.0.0" not in own_names("0.0.0.0", ())


def scope(host: str, server: str = "10.1.2.3") -> dict[str, object]:
    return {"headers": [(b"host", host.encode())], "server": (server, 8000)}


def test_hosts_of_the_certificate_and_the_dialled_address_are_answered() -> None:
    hosts = HostCheck(("*.example.org",))
    for name in ("a.example.org", "A.Example.Org:8000", "10.1.2.3", "10.1.2.3:8000", "localhost"):
        hosts.check(scope(name))
    hosts.check(scope("[fd00::1]:8000", server="fd00::1"))
    for name in ("example.org", "a.b.example.org", "10.1.2.4", "evil.org", "*.org"):
        with pytest.raises((HostNotAllowed, BadRequest)):
            hosts.check(scope(name))
    hosts.allow(["evil.org"])
    hosts.check(scope("evil.org"))


def test_no_handshake_sees_half_of_a_replacement(tmp_path: Path) -> None:
    """While pairs are replaced again and again, every handshake shows one of them, whole."""
    pairs = [pair(tmp_path / name) for name in "ab"]
    certificate, key = pair(tmp_path / "in use")
    tls = TLS(certificate, key)
    client = Trust(fingerprint="").context()
    client.sslobject_class = ssl.SSLObject
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for new_certificate, new_key in pairs:
                put(new_certificate, certificate)
                put(new_key, key)
                tls.refresh(force=True)

    thread = threading.Thread(target=replace)
    thread.start()
    shown = set()
    try:
        for _ in range(300):
            shown.add(handshake(client, tls.context))
    finally:
        stop.set()
        thread.join()
    assert len(shown & {TLS(*each).fingerprint for each in pairs}) == 2, "both came into use"


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """Return the fingerprint that one handshake in memory shows."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    certificate = ours.getpeercert(binary_form=True)
    assert certificate is not None
    return fingerprint_of(certificate)
