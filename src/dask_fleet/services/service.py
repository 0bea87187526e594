"""``Service``: the name under which a module's functions are served."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, overload

from dask_fleet.model.durations import parse_bytes, parse_duration_s
from dask_fleet.model.errors import ServiceDefinitionError
from dask_fleet.model.jobs import Policy
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
                endpoint_name = _checked_name("endpoint", own_name)
            except ServiceDefinitionError as exc:
                raise ServiceDefinitionError(f"{at}: {exc.detail}") from None
            if (other := self.endpoints.get(endpoint_name)) is not None:
                raise ServiceDefinitionError(
                    f"{at}: the service {self.name!r} has an endpoint {endpoint_name!r} already,"
                    f" at {place_of(other.function)}; give one of them another name: @service.endpoint('another-name')"
                )
            self.endpoints[endpoint_name] = Endpoint(endpoint_name, function, policy)
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
