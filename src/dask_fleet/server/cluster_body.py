"""What a request for a cluster says, taken strictly: a misspelt member must not silently become a default."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dask_fleet.codecs.strict_json import loads
from dask_fleet.model.clusters import DEFAULT_IDLE_TIMEOUT_S, ClusterAccess, ClusterKind, ClusterSpec, NewCluster
from dask_fleet.model.dask_configuration import check_memory
from dask_fleet.model.durations import parse_bytes, parse_duration_s
from dask_fleet.model.environment import checked_environment
from dask_fleet.model.errors import BadRequest
from dask_fleet.model.ids import random_id
from dask_fleet.server.auth import Principal, refuse_token

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MAX_WORKERS = 100_000
MAX_THREADS = 4_096
MAX_SECONDS = 10 * 365 * 86_400.0
MIN_SCHEDULER_MIB = 256
"""A scheduler of Dask without a graph takes more than half of it."""
MAX_CSR_CHARS = 16_384
MAX_RESOURCE = 1e15
"""Of one resource: bytes of memory, say, given as a plain number."""
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_MODULE = re.compile(r"[A-Za-z_][\w.]{0,200}\Z")
_CSR_BEGIN = "-----BEGIN CERTIFICATE REQUEST-----"

_MEMBERS = (
    "name", "n_workers", "threads_per_worker", "resources", "pool", "idle_timeout", "max_lifetime", "memory_limit",
    "scheduler_memory_limit", "config", "env", "preload", "scheduler_preload", "dashboard", "access", "shared",
    "shutdown_on_close", "csr", "versions",
)  # fmt: skip


class ClusterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a cluster, checked."""

    new: NewCluster
    csr: bytes | None
    """Certificate request of the client that asks."""
    versions: dict[str, str]
    """Packages of that client, and ``python``; empty if it did not say."""


def parse_create(body: bytes, principal: Principal, *, idempotency_key: str | None) -> ClusterRequest:
    """Return what the body of ``POST /v1/clusters`` asks for.

    With a key, the cluster's id is made of it: a repeated request names the same cluster.

    Raises
    ------
    BadRequest
        Naming the member that is unknown or does not fit, and what would.
    """
    document = _object(body, _MEMBERS)
    take = _Members(document)
    cluster_id = random_id("c") if idempotency_key is None else _id_of(principal, idempotency_key)
    name = take("name", _name, None) or cluster_id
    spec = ClusterSpec(
        n_workers=take("n_workers", _whole(0, MAX_WORKERS), 1),
        threads_per_worker=take("threads_per_worker", _whole(1, MAX_THREADS), 1),
        resources=take("resources", _resources, {}),
        pool=take("pool", _name, "default"),
        idle_timeout_s=take("idle_timeout", _duration, DEFAULT_IDLE_TIMEOUT_S, nullable=True),
        max_lifetime_s=take("max_lifetime", _duration, None, nullable=True),
        memory_limit_bytes=take("memory_limit", _size, None, nullable=True),
        scheduler_memory_limit_bytes=take("scheduler_memory_limit", _scheduler_size, None, nullable=True),
        config=take("config", _config, {}),
        env=take("env", _environment, {}),
        preload=take("preload", _modules, ()),
        scheduler_preload=take("scheduler_preload", _modules, ()),
        dashboard=take("dashboard", _boolean, default=True),
        access=take("access", _access, ClusterAccess.USER),
        shared=take("shared", _boolean, default=False),
        shutdown_on_close=take("shutdown_on_close", _boolean, default=True),
    )
    if spec.shared and (spec.memory_limit_bytes is not None or spec.env):
        raise BadRequest("memory_limit and env are of a worker's own process: leave them out, or leave out shared")
    new = NewCluster(
        cluster_id=cluster_id,
        name=name,
        tenant=principal.tenant,
        user=principal.user,
        kind=ClusterKind.USER,
        spec=spec,
    )
    return ClusterRequest(new=new, csr=take("csr", _csr, None), versions=take("versions", _versions, {}))


def parse_scale(body: bytes) -> tuple[int, tuple[str, ...]]:
    """Return the number of workers that the body of ``PATCH`` asks for, and the names of those that are to go first.

    Raises
    ------
    BadRequest
        If it is anything else.
    """
    document = _object(body, ("n_workers", "leave"))
    if "n_workers" not in document:
        raise BadRequest('the body must be a JSON object such as {"n_workers": 8}')
    take = _Members(document)
    return take("n_workers", _whole(0, MAX_WORKERS), 0), take("leave", _workers, ())


def parse_csr(body: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the certificate request that the body holds, and the versions of who sends it, empty if they are not told.

    Raises
    ------
    BadRequest
        If there is none.
    """
    take = _Members(_object(body, ("csr", "versions")))
    csr: bytes | None = take("csr", _csr, None)
    versions: dict[str, str] = take("versions", _versions, {})
    if csr is None:
        raise BadRequest('the body must be a JSON object {"csr": "-----BEGIN CERTIFICATE REQUEST-----…"}')
    return csr, versions


class _Members:
    """Takes members of a document one by one, each through its own check."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def __call__(self, name: str, check: Callable[[Any], Any], default: Any, *, nullable: bool = False) -> Any:
        if name not in self._document:
            return default
        value = self._document[name]
        if value is None:
            # Null is a value of its own only where it says something: no time-out, no limit.
            return None if nullable else default
        try:
            return check(value)
        except ValueError as exc:
            raise BadRequest(f"{name!r} must be {exc}") from None


def _object(body: bytes, members: tuple[str, ...]) -> dict[str, Any]:
    document = loads(body) if body else {}
    if not isinstance(document, dict):
        raise BadRequest(f"the body must be a JSON object with some of {', '.join(members)}")
    unknown = sorted(set(document) - set(members))
    if unknown:
        raise BadRequest(f"unknown members: {', '.join(name[:40] for name in unknown[:10])}; there are {', '.join(members)}")
    return document


def _id_of(principal: Principal, key: str) -> str:
    named = f"{principal.tenant}\0{principal.user}\0{key}".encode()
    return "c-" + hashlib.sha256(named).hexdigest()[:24]


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.match(value):
        raise ValueError("1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit")
    refuse_token(value, "a name")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}, not {_shown(value)}")
        return value

    return check


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - becomes one refusal with the others
    return value


def _access(value: Any) -> ClusterAccess:
    if value not in list(ClusterAccess):
        raise ValueError(f"{' or '.join(map(repr, map(str, ClusterAccess)))}, not {_shown(value)}")
    return ClusterAccess(value)


def _duration(value: Any) -> float:
    seconds = parse_seconds(value)
    if not 1.0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"from 1 s to 10 years, or null for no limit, not {_shown(value)}")
    return seconds


def parse_seconds(value: Any) -> float:
    """Return seconds.

    Raises
    ------
    ValueError
        In words that go behind "must be".
    """
    try:
        return parse_duration_s(value)
    except ValueError:
        raise ValueError("seconds such as 30, or text such as '45s', '20m', '12h'") from None


def _size(value: Any, at_least_mib: int = 1) -> int:
    try:
        size = parse_bytes(value)
    except ValueError:
        size = 0
    if not at_least_mib << 20 <= size <= 1 << 60:
        raise ValueError(
            f"a size of at least {at_least_mib} MiB such as '4GiB', or null for the agent's, not {_shown(value)}"
        )
    return size


def _scheduler_size(value: Any) -> int:
    return _size(value, MIN_SCHEDULER_MIB)


def _resources(value: Any) -> dict[str, float]:
    wish = f'an object of at most 100 positive numbers up to {MAX_RESOURCE:.0e} such as {{"GPU": 1}}'
    if not isinstance(value, dict) or len(value) > 100:
        raise ValueError(wish)
    found: dict[str, float] = {}
    for name, number in value.items():
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not 0 < number <= MAX_RESOURCE
            or not 0 < len(name) <= 100
            or not name.isprintable()
        ):
            raise ValueError(wish)
        found[name] = float(number)
    return found


def _config(value: Any) -> dict[str, object]:
    if not isinstance(value, dict) or not all(name for name in value):
        raise ValueError("an object of Dask's configuration, with dotted keys or nested")
    rest: list[Any] = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            rest += part.values()
        elif isinstance(part, list):
            rest += part
        elif isinstance(part, int) and not -(1 << 63) <= part < 1 << 64:
            raise ValueError("an object of Dask's configuration, its whole numbers of 64 bits at most")
    check_memory(value)
    return value


def _environment(value: Any) -> dict[str, str]:
    try:
        return checked_environment(value)
    except TypeError:
        raise ValueError('an object of texts such as {"OMP_NUM_THREADS": "2"}') from None


def _modules(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or len(value) > 100
        or not all(isinstance(name, str) and _MODULE.match(name) for name in value)
    ):
        raise ValueError("a list of names of modules that the agents' Python can import")
    return tuple(value)


def _workers(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or len(value) > MAX_WORKERS
        or not all(isinstance(name, str) and 0 < len(name) <= 100 for name in value)
    ):
        raise ValueError("a list of names of workers")
    return tuple(value)


def _csr(value: Any) -> bytes:
    if (
        not isinstance(value, str)
        or len(value) > MAX_CSR_CHARS
        or not value.isascii()
        or not value.lstrip().startswith(_CSR_BEGIN)
    ):
        raise ValueError("a certificate request in PEM")
    return value.encode("ascii")


def _versions(value: Any) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or len(value) > 100
        or not all(isinstance(text, str) and 0 < len(text) <= 100 and 0 < len(name) <= 100 for name, text in value.items())
    ):
        raise ValueError("an object of versions by package")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
