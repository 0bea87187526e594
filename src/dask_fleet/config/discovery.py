"""How SDK and CLI find their server: named, or running from this folder.

Next to ``dask-fleet serve`` nothing need be set: the data folder has ``server.json`` (its URL, and with TLS the fingerprint
of its key) and ``token``.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dask_fleet.config.parsers import parse
from dask_fleet.config.secret import Secret
from dask_fleet.config.sources import ENV_TOKEN_FILE, Loaded, load
from dask_fleet.model.errors import ConfigError

SERVER_FILE = "server.json"
TOKEN_FILE = "token"  # noqa: S105 - the name of a file
AGENT_TOKEN_FILE = "agent.token"  # noqa: S105
PRELOAD_LATER = "PRELOAD_OF_FLEET_LATER"
"""Variable by which an embedded fleet says that somebody waits for its first cluster. No setting, so not ``FLEET_…``."""


def load_client(environ: Mapping[str, str], flags: Mapping[str, Any], cwd: Path) -> Loaded:
    """Return the settings a caller of a server needs: as `load`, with URL and token looked for.

    The URL, if nothing names one, is the one in ``DATA_DIR/server.json``. The token, if nothing names one, is read from the
    file that ``FLEET_TOKEN_FILE`` names, else from ``DATA_DIR/token`` - but only for a server on this machine, or the
    very one in ``server.json``. That one's fingerprint is pinned, unless another or a CA file is named.

    Raises
    ------
    ConfigError
        As `load`, and if ``FLEET_TOKEN_FILE`` cannot be read.
    """
    found = load(environ, flags, cwd)
    data_dir = cwd / found.settings.data_dir
    server = data_dir / SERVER_FILE
    url, fingerprint = _announced(server)
    if url is not None and found.origins["url"] == "default":
        found = found.with_value("url", url, str(server))
    is_announced = found.settings.url == url
    if is_announced and fingerprint is not None and found.settings.ca_file is None and found.settings.fingerprint is None:
        found = found.with_value("fingerprint", fingerprint, str(server))
    if found.settings.token is None:
        if environ.get(ENV_TOKEN_FILE):
            path = cwd / Path(environ[ENV_TOKEN_FILE]).expanduser()
            found = found.with_value("token", _named_token(path), f"{ENV_TOKEN_FILE} ({path})")
        elif is_announced or is_loopback(found.settings.url):
            path = data_dir / TOKEN_FILE
            text = _own_text(path)
            if text:
                found = found.with_value("token", parse("token", text), str(path))
    return found


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine, so that a token found in a folder may be sent there."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_text(path: Path) -> str | None:
    """Return a file's text if it is this user's own; another's file could send our token astray."""
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid not in {os.geteuid(), 0}:
                return None
            return file.read(65_536).strip()
    except (OSError, UnicodeDecodeError):
        return None


def _announced(path: Path) -> tuple[str | None, str | None]:
    """Return URL and fingerprint in ``server.json``; ``None`` for what is not to be had."""
    text = _own_text(path)
    if not text:
        return None, None
    try:
        told = json.loads(text)
        url = str(parse("url", told["url"]))
        fingerprint = told.get("fingerprint")
        return url, None if fingerprint is None else str(parse("fingerprint", fingerprint))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, None


def _named_token(path: Path) -> Secret:
    try:
        token = parse("token", path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{ENV_TOKEN_FILE} names {path}, which cannot be read: {exc}") from exc
    except ValueError as exc:
        raise ConfigError(f"{ENV_TOKEN_FILE} names {path}, which must hold {exc}") from None
    assert isinstance(token, Secret)
    return token
