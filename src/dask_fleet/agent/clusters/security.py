"""Credentials as Dask wants them: a ``distributed.Security``."""

from __future__ import annotations

import os
import ssl
from typing import Any

from distributed.security import Security

from dask_fleet.agent.clusters.credentials import Credentials


class MemberSecurity(Security):  # type: ignore[misc]
    """What one member of a cluster shows, whichever role it has; encryption and certificates of both sides are required.

    Dask makes a TLS context for each server, client and listener, and each time writes the key to a temporary file. Here
    there is one context for connecting and one for listening. They are what makes `renew` possible: listeners and connection
    pools hold a reference to them, so that every handshake from then on shows the new certificate. Open connections stay.
    Use it on the thread of the event loop only: a handshake must not begin between the loading of a certificate and its key.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._contexts: dict[ssl.Purpose, ssl.SSLContext] = {}
        self.credentials = credentials
        super().__init__(require_encryption=True, tls_ca_file=credentials.ca, **_fields(credentials))

    def renew(self, credentials: Credentials) -> None:
        """Show another certificate of the same authority from now on.

        Raises
        ------
        ValueError
            If it is of another authority.
        ssl.SSLError
            If certificate and key do not fit; the old ones stay.
        """
        if credentials.ca != self.credentials.ca:
            raise ValueError("the new certificate is of another authority; a cluster keeps its own")
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), credentials)  # a pair that does not fit would leave half of itself
        for context in self._contexts.values():
            _load(context, credentials)
        self.credentials = credentials
        for field, value in _fields(credentials).items():
            setattr(self, field, value)

    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> ssl.SSLContext:  # noqa: ARG002
        context = self._contexts.get(purpose)
        if context is None:
            context = ssl.create_default_context(purpose, cadata=self.credentials.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # the authority knows one cluster only; members are addressed by IP
            context.verify_mode = ssl.CERT_REQUIRED
            if purpose is ssl.Purpose.CLIENT_AUTH:
                context.num_tickets = 0  # Dask never resumes a session
            _load(context, self.credentials)
            self._contexts[purpose] = context
        return context


def client_security(credentials: Credentials) -> Security:
    """Return a plain ``Security`` for a ``Client``: it can be pickled and renewed by making another one."""
    return Security(require_encryption=True, tls_ca_file=credentials.ca, **_fields(credentials))


def _fields(credentials: Credentials) -> dict[str, str]:
    fields: dict[str, str] = {}
    for role in ("client", "scheduler", "worker"):
        fields[f"tls_{role}_cert"] = credentials.certificate
        fields[f"tls_{role}_key"] = credentials.key
    return fields


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Load certificate and key from memory: OpenSSL wants a path, but the key shall touch no disk."""
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{credentials.certificate}\n{credentials.key}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
