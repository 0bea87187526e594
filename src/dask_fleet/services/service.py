"""``Service``: the name under which a module's functions are served."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, overload

from dask_fleet.model.durations import parse_bytes, parse_duration_s
from dask_fleet.model.errors import ServiceDefinitionError
from dask_fleet.model.jobs import Policy
from dask_fleet.model.placement import DEFAULT_LOCAL_TASKS, Placement, PlacementMode
from dask_fleet.services.endpoint import Endpoint
from dask_fleet.services.source import place_of

Function = TypeVar("Function", bound=Callable[..., Any])

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
RESERVED_NAMES = frozenset({"agents", "clusters", "jobs", "openapi", "services", "status"})
"""First path segments below ``/v1`` that the API uses itself."""
MAX_RETRIES = 100


class Service:
    """A group of typed functions that Fleet serves under one name.

    ::

        service = Service("flights")

        @service.endpoint(cache="30d", timeout="2m", retries=2)
        def delay_by_carrier(month: int) -> pd.DataFrame:
            "Mean departure delay of each carrier."

    Parameters
    ----------
    name
        The first part of the endpoints' paths: lower-case letters, digits, ``-`` and ``_``, beginning with a
        letter.
    version
        Said in addition to the hash of the service's own files; change it when something else changed that
        results depend on, such as a data file.
    doc
        What the service is about; by default the docstring of its module.

    Raises
    ------
    ServiceDefinitionError
        If the name cannot be served.
    """

    def __init__(self, name: str, *, version: str = "", doc: str = "") -> None:
        self.name = _checked_name("service", name)
        if self.name in RESERVED_NAMES:
            raise ServiceDefinitionError(f"a service cannot be called {name!r}: the API uses that path; choose another name")
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", version):
            raise ServiceDefinitionError(
                f"service {name!r}: the version must be at most 64 letters, digits, '.', '_' and '-', not {version!r}"
            )
        self.version = version
        self.doc = doc
        self.endpoints: dict[str, Endpoint] = {}

    def __repr__(self) -> str:
        return f"Service({self.name!r}, endpoints=[{', '.join(self.endpoints)}])"

    @overload
    def endpoint(self, name: Function, /) -> Function: ...

    @overload
    def endpoint(
        self,
        name: str | None = None,
        /,
        *,
        cache: str | float | timedelta = ...,
        timeout: str | float | timedelta = ...,
        retries: int = ...,
        pure: bool = ...,
        max_result: str | int = ...,
        placement: str = ...,
        local_tasks: int = ...,
        workers: int | None = ...,
        threads_per_worker: int | None = ...,
        resources: Mapping[str, float] | None = ...,
    ) -> Callable[[Function], Function]: ...

    def endpoint(
        self,
        name: Any = None,
        /,
        *,
        cache: str | float | timedelta = "24h",
        timeout: str | float | timedelta = "1h",
        retries: int = 0,
        pure: bool = True,
        max_result: str | int = "2GiB",
        placement: str = "auto",
        local_tasks: int = DEFAULT_LOCAL_TASKS,
        workers: int | None = None,
        threads_per_worker: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> Any:
        """Serve a function; it stays the plain function it is.

        Parameters
        ----------
        name
            The second part of the path; by default the function's own name.
        cache
            How long a result is served to equal requests.
        timeout
            Longest time of one attempt.
        retries
            How often an attempt that raised is run again.
        pure
            Whether equal requests are one job. ``False`` gives each request its own.
        max_result
            Largest encoded result.
        placement
            Where Dask graphs of this endpoint run: ``"auto"`` takes the worker process's own threads for a graph of at most
            `local_tasks` tasks and a Dask cluster of the job's own for a larger one; ``"worker"`` and ``"cluster"`` force
            one of the two.
        local_tasks
            See `placement`.
        workers
            Dask workers of a job's cluster; by default as many as its graph can use and the pool can give.
        threads_per_worker
            Threads of each of them.
        resources
            What each of them offers to tasks that ask for it, as in Dask: ``{"GPU": 1}``.

        Raises
        ------
        ServiceDefinitionError
            If a name is taken or cannot be served, or a value is none; names file and line of the function.
        """
        if callable(name):
            return self.endpoint()(name)

        def register(function: Function) -> Function:
            at = place_of(function)
            own_name = name if name is not None else getattr(function, "__name__", "")
            try:
                policy = _policy(cache=cache, timeout=timeout, retries=retries, pure=pure, max_result=max_result)
                placed = _placement(
                    placement, local_tasks=local_tasks, workers=workers, threads_per_worker=threads_per_worker,
                    resources=resources,
                )
                endpoint_name = _checked_name("endpoint", own_name)
            except ServiceDefinitionError as exc:
                raise ServiceDefinitionError(f"{at}: {exc.detail}") from None
            if (other := self.endpoints.get(endpoint_name)) is not None:
                raise ServiceDefinitionError(
                    f"{at}: the service {self.name!r} has an endpoint {endpoint_name!r} already,"
                    f" at {place_of(other.function)}; give one of them another name: @service.endpoint('another-name')"
                )
            self.endpoints[endpoint_name] = Endpoint(endpoint_name, function, policy, placed)
            return function

        return register


def _checked_name(what: str, name: object) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        raise ServiceDefinitionError(
            f"the {what} name {name!r} cannot be served: use at most 63 lower-case letters, digits, '_' and '-',"
            " beginning with a letter"
        )
    return name


def _policy(*, cache: object, timeout: object, retries: object, pure: object, max_result: object) -> Policy:
    numbers: dict[str, Any] = {}
    for option, value, parse in (
        ("cache", cache, parse_duration_s),
        ("timeout", timeout, parse_duration_s),
        ("max_result", max_result, parse_bytes),
    ):
        try:
            numbers[option] = parse(value)
        except ValueError as exc:
            raise ServiceDefinitionError(f"{option}={exc}") from None
    if numbers["timeout"] <= 0:
        raise ServiceDefinitionError("timeout must be more than 0 seconds")
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
        raise ServiceDefinitionError(f"retries must be a whole number from 0 to {MAX_RETRIES}, not {retries!r}")
    if not isinstance(pure, bool):
        raise ServiceDefinitionError(f"pure must be True or False, not {pure!r}")
    return Policy(
        cache_s=numbers["cache"],
        timeout_s=numbers["timeout"],
        retries=retries,
        pure=pure,
        max_result_bytes=numbers["max_result"],
    )


def _placement(
    mode: object, *, local_tasks: object, workers: object, threads_per_worker: object, resources: object
) -> Placement:
    known = [str(value) for value in PlacementMode]
    if mode not in known:
        raise ServiceDefinitionError(f"placement must be one of {', '.join(map(repr, known))}, not {mode!r}")
    if isinstance(local_tasks, bool) or not isinstance(local_tasks, int) or local_tasks < 0:
        raise ServiceDefinitionError(f"local_tasks must be a whole number of tasks, 0 or more, not {local_tasks!r}")
    for option, size in (("workers", workers), ("threads_per_worker", threads_per_worker)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ServiceDefinitionError(f"{option} must be a whole number, 1 or more, not {size!r}")
    wants = {} if resources is None else resources
    if not isinstance(wants, Mapping) or not all(
        isinstance(name, str) and name and not isinstance(amount, bool)
        and isinstance(amount, int | float) and math.isfinite(amount) and amount > 0
        for name, amount in wants.items()
    ):
        raise ServiceDefinitionError(
            f"resources must give a number above 0 for each name, as in {{'GPU': 1}}, not {resources!r}"
        )
    if mode == PlacementMode.WORKER and (workers is not None or threads_per_worker is not None or wants):
        raise ServiceDefinitionError(
            "placement='worker' has no cluster that workers, threads_per_worker or resources could be of: leave them out, or"
            " say placement='auto' or 'cluster'"
        )
    return Placement(
        mode=PlacementMode(str(mode)),
        local_tasks=local_tasks,
        workers=workers if isinstance(workers, int) else None,
        threads_per_worker=threads_per_worker if isinstance(threads_per_worker, int) else None,
        resources={name: float(amount) for name, amount in wants.items()},
    )
