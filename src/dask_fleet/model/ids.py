"""Ids: what a job is called, and why the same request has the same name."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

JOB_ID_PATTERN = re.compile(r"[a-z2-7]{32}\Z")
"""32 characters of lower-case base32: 160 bits, safe in URLs, file names and shells."""


_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [first + second for first in _LETTERS for second in _LETTERS]
_SHIFTS = range(150, -1, -10)


def job_id(
    *, tenant: str, service: str, endpoint: str, version: str, params: bytes, nonce: str = ""
) -> str:
    """Return the id of the job that a request asks for.

    SHA-256 over the length-prefixed fields, cut to 160 bits: no two different field lists are the same bytes.

    Parameters
    ----------
    tenant, service, endpoint, version
        What is asked, and of whom.
    params
        Canonical parameters (:func:`dask_fleet.model.canonical.canonical_bytes`).
    nonce
        Makes the id unique for endpoints that are not pure.
    """
    fields = (tenant.encode(), service.encode(), endpoint.encode(), version.encode(), params, nonce.encode())
    named = b"".join([b"%d:%b" % (len(field), field) for field in fields])
    number = int.from_bytes(hashlib.sha256(named).digest()[:20], "big")
    # The standard library's base32 takes as long as the hash and all the rest.
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def random_id(prefix: str) -> str:
    """Return a fresh unguessable id such as ``agent-3q5w…`` (80 random bits)."""
    return f"{prefix}-{base64.b32encode(secrets.token_bytes(10)).decode('ascii').lower()}"
