"""The server's side of TLS: its certificate, and how a new one comes into use without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from dask_fleet.config.fingerprint import fingerprint_of
from dask_fleet.config.settings import Settings
from dask_fleet.model.errors import ConfigError, SetupError

log = logging.getLogger(__name__)

WATCH_S = 3.0
"""How often the files are looked at: a renewed certificate is in use within this time."""
TLS_FOLDER = "tls"
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only. Those of 1.3 are all like that."""

Stamp = tuple[tuple[int, int, int], ...]


class TLS:
    """The certificate in use. Its context stays the same object; connections made after a reload show the new certificate.

    Parameters
    ----------
    certificate, key
        PEM files; without `key`, the first holds both.
    renew
        Called before the files are looked at: makes them anew if they are our own and getting old.

    Raises
    ------
    SetupError
        If the pair cannot be used.
    """

    def __init__(self, certificate: Path, key: Path | None, *, renew: Callable[[], object] | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._renew = renew
        self._stamp: Stamp = ()
        self._failed: Stamp = ()
        self.own = renew is not None
        """Whether the certificate is one that we have made ourselves, so that only its key can be trusted."""
        self.certificate = certificate
        self.fingerprint = ""
        self.names: tuple[str, ...] = ()
        """Host names and addresses that the certificate is for."""
        stamp = self._look()
        self._current = self._load()
        self._stamp = stamp
        self.context = self._load()
        # Each handshake asks for the certificate: so a new one comes into use between two handshakes, never within one.
        self.context.sni_callback = self._choose

    def refresh(self, *, force: bool = False) -> bool:
        """Read the files again if they have changed (or with `force`). Returns whether another certificate is in use now.

        Blocks; a pair that cannot be used changes nothing, is logged once, and is tried again when it has changed.
        """
        stamp: Stamp = ()
        try:
            if self._renew is not None:
                self._renew()
            stamp = self._look()
            if not force and stamp in {self._stamp, self._failed}:
                return False
            self._current = self._load()
        except (SetupError, OSError) as exc:
            if stamp != self._failed or force:
                log.error(  # noqa: TRY400 - the message says it all
                    "the certificate stays as it was: %s", exc, extra={"action": "tls_reload_failed"}
                )
            self._failed = stamp
            return False
        self._stamp, self._failed = stamp, ()
        log.info("certificate read anew", extra={"action": "tls_reloaded", "fingerprint": self.fingerprint})
        return True

    def _look(self) -> Stamp:
        stamps = []
        for path in (self._certificate, self._key):
            if path is not None:
                try:
                    found = path.stat()
                except OSError as exc:
                    raise SetupError(f"cannot read {path}: {exc.strerror}") from exc
                stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(stamps)

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        """Return a context with what is in the files; nothing changes if they cannot be used."""
        context = _context()
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
            der = ssl.PEM_cert_to_DER_cert(_first_certificate(self._certificate.read_text("ascii")))
            fingerprint, names = fingerprint_of(der), _names_of(der)
        except (OSError, ValueError) as exc:  # an SSLError is an OSError
            files = str(self._certificate) if self._key is None else f"{self._certificate} with {self._key}"
            reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
            raise SetupError(
                f"cannot use the certificate {files}: {reason}."
                " Both must be PEM files that belong together, the key not encrypted"
            ) from exc
        self.fingerprint, self.names = fingerprint, names
        return context


def make_tls(settings: Settings, data_dir: Path) -> TLS | None:
    """Return the TLS that the settings ask for, or ``None`` for clear text.

    Raises
    ------
    ConfigError
        If the settings contradict each other.
    SetupError
        If the certificate cannot be used or made.
    """
    if settings.tls_cert is not None:
        if settings.tls == "auto":
            raise ConfigError("choose one: --tls auto makes a certificate, --tls-cert brings one")
        return TLS(settings.tls_cert.absolute(), settings.tls_key.absolute() if settings.tls_key else None)
    if settings.tls_key is not None:
        raise ConfigError("--tls-key needs --tls-cert, the certificate of that key")
    if settings.tls != "auto":
        return None
    from dask_fleet.server.tls_auto import ensure_certificate

    names = own_names(settings.host, settings.allowed_hosts)

    def ensure() -> tuple[Path, Path]:
        return ensure_certificate(data_dir / TLS_FOLDER, names)

    certificate, key = ensure()
    return TLS(certificate, key, renew=ensure)


def own_names(host: str, allowed_hosts: Sequence[str]) -> list[str]:
    """Return under which names a server that listens on `host` is reached."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname().lower(), *allowed_hosts]
    if not is_wildcard(host):
        names.append(host.lower())
    return [name.strip("[]") for name in names if name and name.isascii()]


def is_wildcard(host: str) -> bool:
    """Whether an address means all addresses of this host."""
    return host in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound


@contextlib.asynccontextmanager
async def kept_fresh(tls: TLS | None, changed: Callable[[], object]) -> AsyncIterator[None]:
    """Watch the certificate's files, and SIGHUP; call `changed` on the loop when another certificate is in use."""
    if tls is None:
        yield
        return
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    async def watch() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await asked.wait()
            force = asked.is_set()
            asked.clear()
            try:
                if await asyncio.to_thread(tls.refresh, force=force):
                    changed()
            except Exception:  # whatever it is: the server goes on with what it has
                log.exception("the certificate could not be looked after", extra={"action": "tls_watch_failed"})

    loop.add_signal_handler(signal.SIGHUP, asked.set)
    task = asyncio.create_task(watch(), name="tls-watch")
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask for it on a terminal


def _first_certificate(pem: str) -> str:
    """Return the server's own certificate of a chain."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = pem.find(begin)
    stop = pem.find(end, start)
    if start < 0 or stop < 0:
        raise ValueError("there is no certificate in it")
    return pem[start : stop + len(end)] + "\n"


def _names_of(certificate: bytes) -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = x509.load_der_x509_certificate(certificate).extensions
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)
