"""What a client shows to a cluster and trusts of it, as Dask wants it: a ``distributed.Security``."""

from __future__ import annotations

import os
import ssl
from typing import Any, NoReturn

from distributed.security import Security

from dask_fleet.client.cluster_key import ClusterKey


class ClusterSecurity(Security):  # type: ignore[misc]
    """A client's side of mutual TLS with one cluster.

    Dask makes a TLS context for each `Client`, writing the key to a temporary file each time. Here there is one context, and
    the key touches no disk. All connection pools hold a reference to it, so that `renew` reaches every handshake from then
    on, also with a scheduler that has taken another one's place. Open connections stay.
    """

    def __init__(self, key: ClusterKey, *, ca: str, certificate: str) -> None:
        super().__init__(
            require_encryption=True,
            tls_min_version=ssl.TLSVersion.TLSv1_3,
            tls_ca_file=ca,
            tls_client_cert=certificate,
            tls_client_key=key.reveal(),
        )
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the authority knows one cluster only; its members are addressed by IP
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._context = context
        self._key = key
        self._authorities = {ca}
        self._load(certificate)

    def renew(self, *, ca: str, certificate: str) -> None:
        """Show another certificate for the same key from now on, and trust its authority as well.

        Raises
        ------
        ssl.SSLError
            If it is not for our key; the old one stays.
        """
        if ca not in self._authorities:  # the scheduler was lost with its agent, and the cluster has a new authority
            self._context.load_verify_locations(cadata=ca)
            self._authorities.add(ca)
        self._load(certificate)
        self.tls_ca_file = ca
        self.tls_client_cert = certificate

    def _load(self, certificate: str) -> None:
        """Load certificate and key from memory: OpenSSL wants a path."""
        descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, f"{certificate}\n{self._key.reveal()}".encode("ascii"))
            self._context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)

    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> ssl.SSLContext | None:  # noqa: ARG002
        """Return the one context; a client listens nowhere."""
        return self._context if purpose is ssl.Purpose.SERVER_AUTH else None

    def __repr__(self) -> str:
        return "ClusterSecurity()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client's key to its cluster does not leave its process; use FleetCluster.from_name over there")
