"""The fingerprint of a server: SHA-256 of its public key, as ``sha256:`` and 64 hexadecimal digits.

Of the key (its SubjectPublicKeyInfo in DER) and not of the certificate, so that a renewed certificate is the same server.
``openssl x509 -in cert.pem -pubkey -noout | openssl pkey -pubin -outform der | sha256sum`` gives the same digits.
"""

from __future__ import annotations

import hashlib
import re

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}\Z")


def fingerprint_of(certificate: bytes) -> str:
    """Return the fingerprint of the key in a certificate (DER).

    Raises
    ------
    ValueError
        If it is no certificate.
    """
    # Only those who speak TLS pay for the import.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_der_x509_certificate(certificate).public_key()
    return f"sha256:{hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()}"


def parse_fingerprint(text: str) -> str:
    """Return a fingerprint as it is compared: lower case, without white space around it.

    Raises
    ------
    ValueError
        If it is none; the text completes "X must be …".
    """
    plain = text.strip().lower()
    if not _FINGERPRINT.match(plain):
        raise ValueError("`sha256:` and 64 hexadecimal digits, as `dask-fleet serve` prints them")
    return plain
