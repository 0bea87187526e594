"""Where settings come from: defaults < ``fleet.yaml`` < ``FLEET_*`` < flags, each value with its origin.

The environment is given as an argument, so that tests need not change their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dask_fleet.config.parsers import parse, public_name
from dask_fleet.config.settings import Settings
from dask_fleet.model.errors import ConfigError

CONFIG_FILE = "fleet.yaml"
ENV_PREFIX = "FLEET_"
ENV_CONFIG = "FLEET_CONFIG"
ENV_TOKEN_FILE = "FLEET_TOKEN_FILE"  # noqa: S105 - the name of a variable
_ENV_OTHER = (ENV_CONFIG, ENV_TOKEN_FILE)

_FIELD_OF = {public_name(field.name): field.name for field in fields(Settings)}
_SECRETS = frozenset({"token"})
_PATHS = frozenset({"data_dir", "tls_cert", "tls_key", "ca_file"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Settings, and where each came from."""

    settings: Settings
    origins: dict[str, str]
    """Origin by field name: ``default``, a file's path, ``FLEET_PORT``, ``--port`` …"""

    def with_value(self, name: str, value: Any, origin: str) -> Loaded:
        """Return a copy with one value replaced."""
        return Loaded(settings=replace(self.settings, **{name: value}), origins={**self.origins, name: origin})


def load(environ: Mapping[str, str], flags: Mapping[str, Any], cwd: Path) -> Loaded:
    """Return the settings that hold here.

    Parameters
    ----------
    environ
        The environment's variables.
    flags
        Values from the command line by field name without its unit (``orphan_timeout``); ``None`` means not given.
        ``config`` names another file than ``./fleet.yaml``, which must then exist.
    cwd
        The working folder.

    Raises
    ------
    ConfigError
        If a name is unknown (the nearest one is suggested), a value does not fit, or a file cannot be read.
    """
    origins = {field.name: "default" for field in fields(Settings)}
    values: dict[str, Any] = {}

    def take(name: str, value: Any, origin: str, shown: str) -> None:
        try:
            values[name] = parse(name, value)
        except ValueError as exc:
            given = "what is there" if name in _SECRETS else repr(value)
            raise ConfigError(f"{shown} must be {exc}, not {given}") from None
        origins[name] = origin

    path = _config_path(environ, flags, cwd)
    if path is not None:
        for key, value in _read_yaml(path).items():
            name = _field_of(key.replace("_", "-"), f"setting {key!r} in {path}", _FIELD_OF)
            if name in _SECRETS:
                raise ConfigError(
                    f"{path} must not hold the token: configuration files get shared. Put it into a file of its own "
                    f"(mode 0600) and name that in {ENV_TOKEN_FILE}, or set FLEET_TOKEN"
                )
            take(name, value, str(path), f"{key} in {path}")
            if name in _PATHS:
                values[name] = path.parent / values[name]  # a file's paths mean the same from every working folder
    env_names = {ENV_PREFIX + name.replace("-", "_").upper(): field for name, field in _FIELD_OF.items()}
    for key in sorted(environ):
        if key.startswith(ENV_PREFIX) and key not in _ENV_OTHER:
            name = _field_of(key, f"variable {key}", env_names, _ENV_OTHER)
            take(name, environ[key], key, key)
    for flag, value in flags.items():
        if value is not None and flag != "config":
            name = _FIELD_OF[flag.replace("_", "-")]
            take(name, value, f"--{flag.replace('_', '-')}", f"--{flag.replace('_', '-')}")
    return Loaded(settings=Settings(**values), origins=origins)


def _config_path(environ: Mapping[str, str], flags: Mapping[str, Any], cwd: Path) -> Path | None:
    """Return the configuration file to read, if there is one; a named one must exist."""
    for value, origin in ((flags.get("config"), "--config"), (environ.get(ENV_CONFIG), ENV_CONFIG)):
        if value:
            path = cwd / Path(value).expanduser()
            if not path.is_file():
                raise ConfigError(f"{origin} names {path}, which is not a file")
            return path
    path = cwd / CONFIG_FILE
    return path if path.is_file() else None


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping a file holds; an empty file is an empty mapping."""
    import yaml  # only where there is a file: it costs every other start 30 ms

    from dask_fleet.config.strict_yaml import StrictLoader

    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not YAML: {exc}") from exc
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{path} must be lines of `setting: value`, such as `port: 8000`")
    return document


def _field_of(key: str, shown: str, known: Mapping[str, str], others: Iterable[str] = ()) -> str:
    """Return the field that a name stands for; an unknown name is an error that suggests the nearest."""
    if key in known:
        return known[key]
    names = [*known, *others]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(names))}"
    raise ConfigError(f"unknown {shown}; {cure}")
