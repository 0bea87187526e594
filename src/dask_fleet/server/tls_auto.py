"""``--tls auto``: the server makes a key and a certificate of its own.

The key stays for good, because agents and clients pin it; the certificate is made anew from it when it gets old, or when the
names under which the server is reached have changed.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dask_fleet.model.errors import SetupError

VALID_FOR = timedelta(days=397)
"""What browsers accept at most."""
RENEW_BEFORE = timedelta(days=30)
_BACKDATED = timedelta(hours=1)
"""Other hosts' clocks may be behind."""
KEY_FILE = "key.pem"
CERTIFICATE_FILE = "cert.pem"


def ensure_certificate(folder: Path, names: Iterable[str], *, now: datetime | None = None) -> tuple[Path, Path]:
    """Make what is not there or no longer good; return the files of certificate and key. Repeating it is harmless.

    Parameters
    ----------
    folder
        ``DATA_DIR/tls``; made for its owner only.
    names
        Host names and addresses under which the server is reached.
    now
        Another time than the present, for tests.

    Raises
    ------
    SetupError
        If the folder cannot be used or holds a key that we have not made.
    """
    now = now or datetime.now(UTC)
    certificate_file, key_file = folder / CERTIFICATE_FILE, folder / KEY_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _load_key(key_file)
        if key is None:
            key = ec.generate_private_key(ec.SECP256R1())
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            _write(key_file, pem)
        wanted = sorted(set(names))
        if not _is_good(certificate_file, key, wanted, now):
            _write(certificate_file, _certificate(key, wanted, now).public_bytes(serialization.Encoding.PEM))
    except OSError as exc:
        raise SetupError(f"cannot keep the certificate in {folder}: {exc.strerror}") from exc
    return certificate_file, key_file


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise SetupError(
            f"{path} is no key of ours: remove it to have another made (agents and clients must then pin its fingerprint), "
            "or name a certificate of your own with --tls-cert and --tls-key"
        ) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupError(f"{path} is not an elliptic-curve key: name it with --tls-key and its certificate with --tls-cert")
    path.chmod(0o600)
    return key


def _is_good(path: Path, key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime) -> bool:
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        present = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    return (
        found.public_key() == key.public_key()
        and found.not_valid_before_utc <= now < found.not_valid_after_utc - RENEW_BEFORE
        and present == _alternative_names(names)
    )


def _alternative_names(names: list[str]) -> x509.SubjectAlternativeName:
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            general.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(general)


def _certificate(key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Dask Fleet server")])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now - _BACKDATED + VALID_FOR)
        .add_extension(_alternative_names(names), critical=False)
        # It can vouch for nothing but itself, also where somebody trusts it as an authority.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _write(path: Path, data: bytes) -> None:
    """Put a file in place whole and for good: with half a key there is no server, with another one no client."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
