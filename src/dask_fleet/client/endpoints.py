"""``client.flights.delay_by_carrier``: a service's functions as attributes."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from dask_fleet.client.catalogue import EndpointInfo, ServiceInfo
from dask_fleet.client.options import CallOptions

if TYPE_CHECKING:
    from dask_fleet.client.async_client import AsyncClient
    from dask_fleet.client.async_job import AsyncJob
    from dask_fleet.client.job import Job

Submit = Callable[[EndpointInfo, Mapping[str, Any], CallOptions], "Job"]


class Endpoint:
    """A function of a service, ready to be called: returns a `Job`.

    ``help()``, ``inspect.signature`` and completion show what its author wrote.
    """

    __signature__: inspect.Signature

    def __init__(self, submit: Submit, info: EndpointInfo, options: CallOptions) -> None:
        self._submit = submit
        self.info = info
        self.call_options = options
        self.__name__ = info.name
        self.__qualname__ = f"{info.service}.{info.name}"
        self.__doc__ = info.doc
        self.__signature__ = info.signature()

    def __call__(self, *args: Any, **kwargs: Any) -> Job:
        """Submit a call and return its job at once."""
        return self._submit(self.info, self.info.bind(args, kwargs), self.call_options)

    def options(self, **options: Any) -> Endpoint:
        """Return the same endpoint with options for its calls: ``wait``, ``priority``, ``deadline``, ``tags``, ``refresh``,
        ``idempotency_key``. They have a method of their own so that no parameter's name can clash with them.
        """
        return Endpoint(self._submit, self.info, self.call_options.changed(**options))

    def __repr__(self) -> str:
        return f"<Endpoint {self.__qualname__}{self.__signature__}>"


class ServiceNames:
    """A service; its endpoints are attributes."""

    def __init__(self, submit: Submit, info: ServiceInfo) -> None:
        self._submit = submit
        self._info = info
        self.__doc__ = info.doc

    def __getattr__(self, name: str) -> Endpoint:
        if name.startswith("_"):
            raise AttributeError(name)
        return Endpoint(self._submit, self._info.endpoint(name), CallOptions())

    def __dir__(self) -> list[str]:
        return sorted(self._info.endpoints)

    def __repr__(self) -> str:
        return f"<Service {self._info.name}: {', '.join(sorted(self._info.endpoints))}>"


class AsyncEndpoint:
    """A function of a service by name. What there is can only be asked within a call: an attribute cannot be awaited."""

    def __init__(self, client: AsyncClient, service: str, name: str, options: CallOptions) -> None:
        self._client = client
        self.service = service
        self.name = name
        self.call_options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[AsyncJob]:
        """Submit a call; await it for its job.

        Raises
        ------
        AttributeError
            When awaited, if the server has no such service or endpoint; the message lists what there is.
        """
        return self._submit(args, kwargs)

    async def _submit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AsyncJob:
        info = await self._client.endpoint_info(self.service, self.name)
        return await self._client.submit_call(info, info.bind(args, kwargs), self.call_options)

    def options(self, **options: Any) -> AsyncEndpoint:
        """Return the same endpoint with options for its calls, as `Endpoint.options`."""
        return AsyncEndpoint(self._client, self.service, self.name, self.call_options.changed(**options))

    def __repr__(self) -> str:
        return f"<AsyncEndpoint {self.service}.{self.name}>"


class AsyncServiceNames:
    """A service by name; its endpoints are attributes."""

    def __init__(self, client: AsyncClient, name: str, info: ServiceInfo | None) -> None:
        self._client = client
        self._name = name
        self._info = info

    def __getattr__(self, name: str) -> AsyncEndpoint:
        if name.startswith("_"):
            raise AttributeError(name)
        return AsyncEndpoint(self._client, self._name, name, CallOptions())

    def __dir__(self) -> list[str]:
        return sorted(self._info.endpoints) if self._info else []

    def __repr__(self) -> str:
        return f"<AsyncService {self._name}>"


def split_name(endpoint: str) -> tuple[str, str]:
    """Return service and endpoint of ``service.endpoint``.

    Raises
    ------
    ValueError
        If it is not of that form.
    """
    service, dot, name = endpoint.partition(".")
    if not (service and dot and name):
        raise ValueError(f"an endpoint is named service.endpoint, such as flights.delay_by_carrier, not {endpoint!r}")
    return service, name


def item_params(info: EndpointInfo, item: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of one call of a ``map``: by name from a dict, in order from a tuple, else the first."""
    if isinstance(item, Mapping):
        return {**common, **item}
    args = item if isinstance(item, tuple) else (item,)
    bound = info.bind(args, {})
    if twice := bound.keys() & common.keys():
        raise TypeError(f"{info.service}.{info.name}() got multiple values for argument {min(twice)!r}")
    return {**common, **bound}
