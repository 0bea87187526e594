"""The certificate authority of one cluster.

Dask checks that a peer's certificate comes from the right authority, and nothing more. So each cluster gets an authority of
its own: who holds a certificate of one cluster can do nothing to another one. The authority's key stays in the process that
made it; members are given a certificate and the key to it.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.config.settings import MAX_CERTIFICATE_LIFETIME_S

AUTHORITY_LIFETIME_S = 20 * 365 * 24 * 3600.0
"""Longer than any scheduler lives, twice the longest `max_lifetime`: after it, no new connection would be made within the
cluster. Its key is nowhere but in the agent's memory, and nobody trusts it once the scheduler has ended.
"""
CLOCK_SKEW_S = 600.0
"""How far the clock of another host may be behind ours."""


_MAX_REQUEST_BYTES = 16 << 10
_CURVES = {"secp256r1", "secp384r1"}


class Role(StrEnum):
    """Who shows the certificate."""

    SCHEDULER = "scheduler"
    WORKER = "worker"
    CLIENT = "client"
    """Can connect, but nobody connects to it: its certificate does not pass for that of a scheduler or a worker."""


class Authority:
    """Issues the certificates of one cluster: ECDSA on P-256, about 0.2 ms each.

    Parameters
    ----------
    cluster
        Its id; for people who look into a certificate.
    lifetime_s
        How long the authority is trusted.
    certificate_lifetime_s
        How long each certificate holds, at most a day.

    Raises
    ------
    ValueError
        If certificates would live longer.
    """

    def __init__(
        self,
        cluster: str,
        *,
        lifetime_s: float = AUTHORITY_LIFETIME_S,
        certificate_lifetime_s: float = MAX_CERTIFICATE_LIFETIME_S,
    ) -> None:
        self.cluster = cluster
        self._lifetime_s = _checked(certificate_lifetime_s)
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key()
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        self._name = _name(f"dask-fleet cluster {cluster}")
        now = dt.datetime.now(dt.UTC)
        self._expires = now + dt.timedelta(seconds=lifetime_s)
        certificate = (
            _builder(self._name, self._name, public, now, self._expires)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = certificate.public_bytes(serialization.Encoding.PEM).decode()
        """The authority's own certificate, in PEM; no secret."""

    def issue(self, role: Role, *, lifetime_s: float | None = None) -> Credentials:
        """Make a key and a certificate for it.

        Raises
        ------
        ValueError
            If the certificate would live longer than a day.
        """
        lifetime_s = self._lifetime_s if lifetime_s is None else _checked(lifetime_s)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, expires = self._certify(key.public_key(), role, lifetime_s)
        return Credentials(
            ca=self.ca, certificate=certificate, key=private_pem(key), expires_us=int(expires.timestamp() * 1e6)
        )

    def sign(self, request: bytes, role: Role) -> str:
        """Return a certificate in PEM for the key of a certificate request, whatever else that asks for.

        Raises
        ------
        ValueError
            If it is no such request, is not signed with its own key, or has a key that is too weak or unusual.
        """
        if len(request) > _MAX_REQUEST_BYTES:
            raise ValueError(f"a certificate request has {_MAX_REQUEST_BYTES} bytes at most")
        parsed = x509.load_pem_x509_csr(request)
        if not parsed.is_signature_valid:
            raise ValueError("the certificate request is not signed with its own key")
        key = parsed.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
            raise ValueError("the key of a certificate request must be on the curve P-256 or P-384")
        return self._certify(key, role, self._lifetime_s)[0]

    def _certify(self, key: ec.EllipticCurvePublicKey, role: Role, lifetime_s: float) -> tuple[str, dt.datetime]:
        now = dt.datetime.now(dt.UTC)
        expires = min(now + dt.timedelta(seconds=lifetime_s), self._expires)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role is not Role.CLIENT:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            _builder(_name(f"{role} of {self.cluster}"), self._name, key, now, expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), expires

    def __reduce__(self) -> NoReturn:
        raise TypeError("an authority's key does not leave the process that made it; issue a certificate instead")


def _checked(lifetime_s: float) -> float:
    if lifetime_s > MAX_CERTIFICATE_LIFETIME_S:
        raise ValueError(f"a certificate lives {MAX_CERTIFICATE_LIFETIME_S:.0f} s at most, not {lifetime_s:.0f}: renew")
    return lifetime_s


def expiry_us(certificate: str) -> int:
    """Return until when a certificate (PEM) holds, in microseconds since 1970.

    Raises
    ------
    ValueError
        If it is none.
    """
    return int(x509.load_pem_x509_certificate(certificate.encode("ascii")).not_valid_after_utc.timestamp() * 1e6)


def request_certificate(member: str) -> tuple[bytes, str]:
    """Return ``(request, key)`` in PEM, for an authority elsewhere: the key stays here."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(member)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM), private_pem(key)


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a key in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # X.509 allows no longer one


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, expires: dt.datetime
) -> x509.CertificateBuilder:
    # Begins before `expires` even where a certificate is issued that has expired already.
    begins = min(now, expires) - dt.timedelta(seconds=CLOCK_SKEW_S)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(expires)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
