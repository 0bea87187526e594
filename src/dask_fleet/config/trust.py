"""How agents, SDK and command line know that the server at the other end of TLS is the one they mean."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from dask_fleet.config.fingerprint import fingerprint_of
from dask_fleet.model.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whom to trust: the holder of one key, what the authorities in a file have signed, or what this machine trusts.

    With a fingerprint, neither the chain of the certificate nor the name in it nor its age is looked at: the key is all.
    """

    ca_file: Path | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.ca_file is not None and self.fingerprint is not None:
            raise ConfigError("give either a CA file or a fingerprint, not both: a pinned key needs no authority")

    def context(self) -> ssl.SSLContext:
        """Return a context for connections to the server. Reads files.

        A wrong server ends the handshake with `ssl.SSLCertVerificationError`, before anything of ours is sent.

        Raises
        ------
        ConfigError
            If the CA file cannot be used.
        """
        if self.fingerprint is not None:
            context: ssl.SSLContext = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
            assert isinstance(context, _PinnedContext)
            context.fingerprint = self.fingerprint
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            try:
                context = ssl.create_default_context(cafile=self.ca_file)
            except (OSError, ssl.SSLError) as exc:
                raise ConfigError(f"cannot use the CA file {self.ca_file}: {exc}") from exc
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def explain(exc: BaseException) -> str | None:
    """Return why an attempt to connect was refused by our own check of the server, or ``None`` if that is not why."""
    seen: BaseException | None = exc
    for _ in range(8):  # libraries wrap each other's errors
        if seen is None:
            return None
        if isinstance(seen, WrongKeyError):
            return str(seen.strerror)
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"its certificate does not verify: {seen.verify_message}"
        seen = seen.__cause__ or seen.__context__
    return None


CURE = (
    "If the server makes its own certificate, give the fingerprint it prints at its start (--fingerprint, "
    "FLEET_FINGERPRINT); if an authority signed it, that authority's certificate (--ca-file, FLEET_CA_FILE)."
)


class WrongKeyError(ssl.SSLCertVerificationError):
    """The server has another key than the pinned one."""


def _check(context: ssl.SSLContext, certificate: bytes | None) -> None:
    assert isinstance(context, _PinnedContext)
    try:
        found = fingerprint_of(certificate or b"")
    except ValueError:
        found = "unreadable"
    if found != context.fingerprint:
        raise WrongKeyError(
            ssl.SSL_ERROR_SSL,
            f"its key is {found}, not the pinned {context.fingerprint}: it was set up anew, or somebody is in between",
        )


class _PinnedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self.context, self.getpeercert(binary_form=True))


class _PinnedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as the standard library has it
        super().do_handshake(block)
        _check(self.context, self.getpeercert(binary_form=True))


class _PinnedContext(ssl.SSLContext):
    """Checks at the end of each handshake, whichever library makes it."""

    fingerprint = ""
    sslobject_class = _PinnedObject
    sslsocket_class = _PinnedSocket
