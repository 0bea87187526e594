"""Where the server is, and what is shown to and asked of it; read anew for every connection."""

from __future__ import annotations

import functools
import ipaddress
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dask_fleet.agent.options import AgentOptions
from dask_fleet.config.fingerprint import parse_fingerprint
from dask_fleet.config.trust import Trust
from dask_fleet.model.errors import ClearTextRefused, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One server."""

    url: str
    """Without a slash at the end."""
    token: str
    trust: Trust

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        """Host to dial."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Port to dial."""
        return urlsplit(self.url).port or (443 if self.secure else 80)

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS needs, or ``None`` for clear text. Blocks the first time, to read certificates."""
        return _context(self.trust) if self.secure else None


def refuse_missing_token(token_file: Path) -> None:
    """Look whether there is a token to show, so that whoever mistypes a name hears of it at once.

    Raises
    ------
    ConfigError
        If the file cannot be read or has nothing in it.
    """
    cure = (
        "make one where the server is, with `dask-fleet tokens create --user NAME --scope agent`, and name its file with "
        "--token-file"
    )
    try:
        token = token_file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(f"the agent's token cannot be read from {token_file} ({why}): {cure}") from exc
    if not token:
        raise ConfigError(f"{token_file} has no token in it: {cure}")


def read_address(options: AgentOptions) -> Address:
    """Return the server's address of now. Reads two small local files.

    Raises
    ------
    OSError
        If a file is not there (yet).
    ValueError
        If what is there is of no use.
    ClearTextRefused
        If the token would travel to another host in the clear.
    """
    url, fingerprint = options.server, options.fingerprint
    if url is None:
        assert options.server_file is not None
        document = json.loads(options.server_file.read_bytes())
        url = document.get("url") if isinstance(document, dict) else None
        if not isinstance(url, str):
            raise ValueError(f"{options.server_file} has no url")
        told = document.get("fingerprint")
        fingerprint = fingerprint if told is None else parse_fingerprint(str(told))
    refuse_clear_text(url)
    trust = Trust(ca_file=None if fingerprint else options.ca_file, fingerprint=fingerprint)
    return Address(url=url.rstrip("/"), token=options.token_file.read_text().strip(), trust=trust)


def refuse_clear_text(url: str) -> None:
    """Refuse a server that would be told the token in a way that others can read.

    Raises
    ------
    ClearTextRefused
        If the URL is ``http`` and leads to another host.
    ValueError
        If it is no server's URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"not a server's URL: {url!r}")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ClearTextRefused(
            f"refusing to connect to {url}: without TLS the agent's token could be read on its way. Start the server with "
            "--tls auto and give the agent its https URL and --fingerprint; or open an SSH tunnel "
            f"(ssh -L 8000:127.0.0.1:{parts.port or 80} {parts.hostname}) and give it http://127.0.0.1:8000"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=4)
def _context(trust: Trust) -> ssl.SSLContext:
    return trust.context()
