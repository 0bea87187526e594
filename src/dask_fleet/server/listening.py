"""Where the server listens, under which URL it is found, and how that is told to agents and clients of its data folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from dask_fleet.model.errors import BindRefused, SetupError
from dask_fleet.server.tls import TLS, is_wildcard

SERVER_FILE = "server.json"
UNSENT_BYTES = 128 << 10
"""How much of an answer the kernel takes on beyond what the client has room for. Without a limit it would buffer megabytes
for each client that does not read, and we would read them from disk first; with it, a fast client waits for nothing."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def refuse_open_bind(host: str, *, secure: bool) -> None:
    """Refuse every address but loopback unless TLS is spoken: a token would travel in the clear.

    Raises
    ------
    BindRefused
        With the reason and the cure.
    """
    if host not in LOOPBACK and not secure:
        raise BindRefused(
            f"refusing to listen on {host}: without TLS, tokens and results could be read on their way."
            " Give --tls auto (the server makes a certificate; agents and clients pin its fingerprint) or --tls-cert and"
            " --tls-key; or listen on 127.0.0.1 behind a TLS-terminating reverse proxy on this host (name its public host in"
            " --allowed-hosts) or an SSH tunnel."
        )


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Bind and listen: whoever dials from now on waits in the backlog until the server serves.

    Raises
    ------
    SetupError
        If that address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # its connections inherit it
        try:
            listener.bind((host, port))
        except OSError as exc:
            raise SetupError(
                f"cannot listen on {host}:{port}: {exc.strerror}; choose another port with --port (0 takes any free one)"
            ) from exc
        listener.listen(2048)  # the agent may dial at once: it waits in the backlog until we serve
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        yield listener


def local_url(host: str, port: int, *, secure: bool) -> str:
    """Return the URL for this host: of all addresses, loopback."""
    if is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return _url(host, port, secure=secure)


def public_url(host: str, port: int, tls: TLS | None) -> str:
    """Return the URL for other hosts: under the first name of the certificate, or this host's, if it listens everywhere."""
    if tls is not None and is_wildcard(host):
        named = [name for name in tls.names if not name.startswith("*") and name not in LOOPBACK]
        host = socket.gethostname() if tls.own or not named else named[0]
    return _url(host, port, secure=tls is not None)


def cluster_host(host: str) -> str:
    """Return the address on which clusters of the local agent listen, if the server listens on `host`; empty for loopback.

    A server that other hosts reach has agents and clients there, who must reach the clusters, too.
    """
    if host in LOOPBACK:
        return ""
    if not is_wildcard(host):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, only asks for the way out; an address that nobody has
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _url(host: str, port: int, *, secure: bool) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"


class Announcement:
    """``DATA_DIR/server.json``: where the server is and what its key is, for agent and clients of this folder."""

    def __init__(self, data_dir: Path, url: str, tls: TLS | None) -> None:
        self._path = data_dir / SERVER_FILE
        self._url = url
        self._tls = tls

    def write(self) -> None:
        """Write it, or write it anew with the fingerprint of now."""
        told: dict[str, object] = {"url": self._url, "pid": os.getpid()}
        if self._tls is not None:
            told["fingerprint"] = self._tls.fingerprint
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(told))
        temporary.replace(self._path)

    def __enter__(self) -> Self:
        self.write()
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
