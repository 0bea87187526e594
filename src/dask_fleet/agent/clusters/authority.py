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

MAX_CERTIFICATE_LIFETIME_S = 24 * 3600.0
AUTHORITY_LIFETIME_S = 30 * 24 * 3600.0
"""Longest life of a cluster: after it, no new connection is made within it."""
CLOCK_SKEW_S = 600.0
"""How far the clock of another host may be behind ours."""


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
    """

    def __init__(self, cluster: str, *, lifetime_s: float = AUTHORITY_LIFETIME_S) -> None:
        self.cluster = cluster
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

    def issue(self, role: Role, *, lifetime_s: float = MAX_CERTIFICATE_LIFETIME_S) -> Credentials:
        """Make a key and a certificate for it.

        Raises
        ------
        ValueError
            If the certificate would live longer than a day.
        """
        if lifetime_s > MAX_CERTIFICATE_LIFETIME_S:
            raise ValueError(f"a certificate lives {MAX_CERTIFICATE_LIFETIME_S:.0f} s at most, not {lifetime_s:.0f}: renew")
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        expires = min(now + dt.timedelta(seconds=lifetime_s), self._expires)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role is not Role.CLIENT:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            _builder(_name(f"{role} of {self.cluster}"), self._name, key.public_key(), now, expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(
            ca=self.ca,
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
            expires_us=int(expires.timestamp() * 1e6),
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("an authority's key does not leave the process that made it; issue a certificate instead")


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
