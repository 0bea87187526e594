"""From the arguments of a `FleetCluster` to the request that asks for it: checked here where that needs no server."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from dask_fleet.model.clusters import DEFAULT_IDLE_TIMEOUT_S
from dask_fleet.model.dask_configuration import check_memory
from dask_fleet.model.durations import parse_bytes, parse_duration_s
from dask_fleet.model.environment import checked_environment

Duration = float | str | timedelta | None

_OF_WORKER = {
    "nthreads": "threads_per_worker",
    "threads": "threads_per_worker",
    "ncores": "threads_per_worker",
    "memory_limit": "memory_limit",
    "resources": "resources",
    "preload": "preload",
    "env": "env",
    "local_directory": "local_directory",
}
"""Options of ``distributed.Worker`` and ``Nanny`` by our name of them."""

_INSTEAD = {
    "name": "workers are named 0, 1, …; `name` of the FleetCluster is the cluster's",
    "lifetime": "give the cluster a `max_lifetime`",
    "plugins": "register them with `client.register_plugin`",
    "preload_argv": "put what a preload needs into `env` or `config`",
    "dashboard": "workers of a fleet have none; the scheduler's is at `cluster.dashboard_link`",
    "security": "each cluster has certificates of its own",
    "protocol": "it is always tls",
    "host": "the agents' setting `cluster_host` says where they listen",
    "nanny": "agents do what nannies do",
    "death_timeout": "a worker ends with its cluster",
    "memory_target_fraction": "set distributed.worker.memory.target in `config`",
    "memory_spill_fraction": "set distributed.worker.memory.spill in `config`",
    "memory_pause_fraction": "set distributed.worker.memory.pause in `config`",
    "memory_terminate_fraction": "set distributed.worker.memory.terminate in `config`",
}
"""What a FleetCluster has in place of other options of Dask's workers."""


def request_body(
    *,
    n_workers: int,
    threads_per_worker: int | None = None,
    memory_limit: str | float | None = None,
    resources: Mapping[str, float] | None = None,
    worker_options: Mapping[str, Any] | None = None,
    name: str | None = None,
    pool: str | None = None,
    idle_timeout: Duration = DEFAULT_IDLE_TIMEOUT_S,
    max_lifetime: Duration = None,
    config: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    preload: str | Iterable[str] = (),
    scheduler_preload: str | Iterable[str] = (),
    scheduler_memory_limit: str | float | None = None,
    dashboard: bool = True,
    access: str | None = None,
    shared: bool = False,
    shutdown_on_close: bool = True,
) -> dict[str, Any]:
    """Return the members of the request.

    Raises
    ------
    TypeError
        If an option has no such type, or a worker has no such option.
    ValueError
        If a size, duration or number cannot be; the message shows what can.
    """
    worker: dict[str, Any] = {
        "threads_per_worker": threads_per_worker,
        "memory_limit": memory_limit,
        "resources": resources,
        "preload": list_of(preload) or None,
        "env": env or None,
        "local_directory": None,
    }
    for option, value in (worker_options or {}).items():
        known = _OF_WORKER.get(option)
        if known is None:
            instead = f": {_INSTEAD[option]}" if option in _INSTEAD else ""
            raise TypeError(
                f"a worker of a FleetCluster has no option {option!r}{instead}; there are {', '.join(sorted(_OF_WORKER))}"
            )
        if worker[known] is not None:
            raise TypeError(f"{known} and worker_options[{option!r}] say the same thing; give one of them")
        worker[known] = list_of(value) if known == "preload" else value
    if worker["local_directory"] is not None:
        config = {**(config or {}), "temporary-directory": str(worker["local_directory"])}
    if shared and (worker["memory_limit"] is not None or worker["env"]):
        raise ValueError("memory_limit and env are of a worker's own process: leave them out, or leave out shared=True")
    body: dict[str, Any] = {
        "name": name,
        "n_workers": whole("n_workers", n_workers, 0),
        "threads_per_worker": _or_none(worker["threads_per_worker"], lambda value: whole("threads_per_worker", value, 1)),
        "memory_limit": memory_bytes(worker["memory_limit"]),
        "resources": _or_none(worker["resources"], lambda value: {key: float(number) for key, number in value.items()}),
        "preload": worker["preload"],
        "env": _or_none(worker["env"], _environment),
        "pool": pool,
        "config": _or_none(config, _json_able),
        "scheduler_preload": list_of(scheduler_preload) or None,
        "scheduler_memory_limit": memory_bytes(scheduler_memory_limit, "scheduler_memory_limit"),
        "dashboard": dashboard,
        "access": access,
        "shared": shared or None,
        "shutdown_on_close": shutdown_on_close,
    }
    asked = {member: value for member, value in body.items() if value is not None}
    # Null says something here: no limit.
    asked["idle_timeout"] = _or_none(idle_timeout, parse_duration_s)
    asked["max_lifetime"] = _or_none(max_lifetime, parse_duration_s)
    return asked


def whole(name: str, value: Any, low: int) -> int:
    """Return a whole number of at least `low`.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # numpy's, too
    except TypeError:
        number = None
    if number is None or number < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
    return number


def amount(name: str, value: Any) -> float:
    """Return a finite number of at least 0.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
    return number


def amount_bytes(name: str, value: Any) -> float:
    """Return how many bytes all workers are to have together.

    Raises
    ------
    ValueError
        If it is no size.
    """
    if not isinstance(value, str):
        return amount(name, value)
    try:
        return parse_bytes(value)
    except ValueError as exc:
        raise ValueError(f"{name} must be a size: {exc}") from None


def memory_bytes(value: str | float | None, name: str = "memory_limit") -> int | None:
    """Return a memory limit in bytes, ``None`` for the agent's.

    Raises
    ------
    ValueError
        If it is no size.
    """
    if value is None or value == "auto":
        return None
    size = parse_bytes(int(value) if isinstance(value, float) and math.isfinite(value) else value)
    if size < 1 << 20:
        raise ValueError(f"{name} must be at least 1 MiB, not {value!r}; leave it out for what the pool gives")
    return size


def list_of(names: str | Iterable[str]) -> list[str]:
    """Return module names as a list; one may come alone."""
    return [names] if isinstance(names, str) else list(names)


def _or_none(value: Any, convert: Any) -> Any:
    return None if value is None else convert(value)


def _json_able(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = dict(json.loads(json.dumps(dict(config), allow_nan=False)))
    except (TypeError, ValueError) as exc:
        raise ValueError(f"config must hold what JSON has: numbers, text, lists and dicts ({exc})") from None
    try:
        check_memory(found)
    except ValueError as exc:
        raise ValueError(f"config must be {exc}") from None
    return found


def _environment(env: Mapping[str, Any]) -> dict[str, str]:
    try:
        return checked_environment({name: str(value) for name, value in env.items()})
    except TypeError as exc:
        raise TypeError(f"env must be a mapping of names to texts: {exc}") from None
    except ValueError as exc:
        raise ValueError(f"env must be {exc}") from None
