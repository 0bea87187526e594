"""From what a file, a variable or a flag says to a setting's value.

Every refusal is a `ValueError` whose text completes the sentence "X must be …".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dask_fleet.config.durations import parse_duration
from dask_fleet.config.fingerprint import parse_fingerprint
from dask_fleet.config.memory import parse_memory_limit
from dask_fleet.config.resources import parse_resources
from dask_fleet.config.secret import Secret
from dask_fleet.config.settings import LOG_FORMATS, LOG_LEVELS, MAX_CERTIFICATE_LIFETIME_S, TLS_MODES, Settings
from dask_fleet.model.durations import parse_bytes

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def public_name(field: str) -> str:
    """Return a field's name as files and flags write it: dashes, and no unit."""
    return field.removesuffix("_s").removesuffix("_bytes").replace("_", "-")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value.strip()


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("true or false")


def _whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    wish = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def parse_whole(value: Any) -> int:
        if isinstance(value, bool | float):
            raise ValueError(wish)  # noqa: TRY004 - see the module's docstring
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ValueError(wish) from None
        if number < low or (high is not None and number > high):
            raise ValueError(wish)
        return number

    return parse_whole


def _size(value: Any) -> int:
    try:
        return parse_bytes(int(value) if isinstance(value, str) and value.strip().isdecimal() else value)
    except ValueError:
        raise ValueError("a size such as '500MB' or '5GiB'") from None


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse_word(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return word

    return parse_word


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value.expanduser()
    return Path(_text(value)).expanduser()


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("a list of host names")
    return tuple(part.strip().lower() for part in parts if part.strip())


def _url(value: Any) -> str:
    wish = "a URL such as http://127.0.0.1:8000"
    text = _text(value).rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError(wish) from None
    if not usable or parts.query or parts.fragment:
        raise ValueError(wish)
    if parts.username or parts.password:
        raise ValueError(f"{wish}, without a user name (the token goes into FLEET_TOKEN)")
    return text


def _secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    text = _text(value)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("one line of printable ASCII")
    return Secret(text)


def _tls_mode(value: Any) -> str:
    if value is False:
        return "off"  # what YAML makes of the plain word
    return _one_of(*TLS_MODES)(value)


def _limit(value: Any) -> int | None:
    return None if value is None else _whole(1)(value)


def _share(value: Any) -> float:
    try:
        share = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError("a number from 0 to below 1, such as 0.1")
    return share


def _lifetime(value: Any) -> float:
    seconds = parse_duration(value)
    if not 1 <= seconds <= MAX_CERTIFICATE_LIFETIME_S:
        raise ValueError("a duration from 1s to 24h")
    return seconds


def _fingerprint(value: Any) -> str:
    return parse_fingerprint(_text(value))


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "host": _text,
    "port": _whole(0, 65_535),
    "tls": _tls_mode,
    "tls_cert": _path,
    "tls_key": _path,
    "data_dir": _path,
    "nworkers": _whole(1),
    "nthreads": _whole(1),
    "memory_limit": parse_memory_limit,
    "spare_schedulers": _whole(0),
    "resources": parse_resources,
    "scheduler_memory_limit": parse_memory_limit,
    "certificate_lifetime_s": _lifetime,
    "cluster_host": _text,
    "agent": _boolean,
    "orphan_timeout_s": parse_duration,
    "max_queued": _whole(1),
    "max_clusters_per_user": _whole(1),
    "job_share": _share,
    "max_cluster_workers": _limit,
    "spare_clusters": _whole(0),
    "max_connections_per_peer": _whole(1),
    "drain_timeout_s": parse_duration,
    "row_retention_s": parse_duration,
    "logs_max_bytes": _size,
    "allowed_hosts": _names,
    "log_level": _one_of(*LOG_LEVELS),
    "log_format": _one_of(*LOG_FORMATS),
    "ledger": _text,
    "result_store": _text,
    "url": _url,
    "ca_file": _path,
    "fingerprint": _fingerprint,
    "token": _secret,
}
assert _PARSERS.keys() == {field.name for field in fields(Settings)}, "each setting has its parser"


def parse(field: str, value: Any) -> Any:
    """Return `value` as the setting `field` has it.

    Raises
    ------
    ValueError
        If it does not fit; the text says what would.
    """
    return _PARSERS[field](value)
