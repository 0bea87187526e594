"""What a server offers, as the SDK and the CLI see it: names, signatures, docstrings, binding of arguments."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_fleet.client.schema_text import schema_text


class _Shown(str):
    """Text that shows itself without quotes, so that a signature reads ``month: int``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointInfo:
    """One function of a service."""

    service: str
    name: str
    doc: str
    parameters: Mapping[str, Any]
    """JSON Schema of the parameters."""
    order: tuple[str, ...]
    returns: str
    pure: bool

    @classmethod
    def from_document(cls, service: str, document: Mapping[str, Any]) -> EndpointInfo:
        """Return what an endpoint's document in ``GET /v1/services`` says."""
        return cls(
            service=service,
            name=document["name"],
            doc=document.get("doc") or "",
            parameters=document.get("parameters") or {},
            order=tuple(document.get("order") or ()),
            returns=document.get("returns") or "any",
            pure=bool((document.get("policy") or {}).get("pure", True)),
        )

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a call by name. Whether they fit is for the server to say.

        Raises
        ------
        TypeError
            If there are more positional arguments than parameters, or one is given twice.
        """
        if len(args) > len(self.order):
            raise TypeError(
                f"{self.service}.{self.name}() takes {len(self.order)} positional arguments but {len(args)} were given; "
                f"it is {self.name}{self.signature()}"
            )
        bound = dict(zip(self.order, args, strict=False))
        if twice := bound.keys() & kwargs.keys():
            raise TypeError(f"{self.service}.{self.name}() got multiple values for argument {min(twice)!r}")
        return {**bound, **kwargs}

    def signature(self) -> inspect.Signature:
        """Return the signature as its author wrote it, types told from the schema."""
        properties: Mapping[str, Any] = self.parameters.get("properties") or {}
        required = set(self.parameters.get("required") or ())
        parameters: list[inspect.Parameter] = []
        positional = True
        for name in self.order:
            schema = properties.get(name) or {}
            default = inspect.Parameter.empty if name in required else schema.get("default", ...)
            if default is inspect.Parameter.empty and any(p.default is not p.empty for p in parameters):
                positional = False  # a required one after an optional one must have been so
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
            annotation = _Shown(schema_text(schema, self.parameters))
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
        return inspect.Signature(parameters, return_annotation=_Shown(self.returns))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """One service."""

    name: str
    doc: str
    version: str
    endpoints: Mapping[str, EndpointInfo]

    def endpoint(self, name: str) -> EndpointInfo:
        """Return an endpoint.

        Raises
        ------
        AttributeError
            If there is none; the message lists what there is, the nearest first.
        """
        try:
            return self.endpoints[name]
        except KeyError:
            raise AttributeError(unknown(f"service {self.name!r} has no endpoint", name, self.endpoints)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All services of one server."""

    services: Mapping[str, ServiceInfo]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Catalogue:
        """Return what ``GET /v1/services`` says."""
        services = {}
        for service in document["services"]:
            name = service["name"]
            endpoints = [EndpointInfo.from_document(name, endpoint) for endpoint in service["endpoints"]]
            services[name] = ServiceInfo(
                name=name,
                doc=service.get("doc") or "",
                version=service.get("version") or "",
                endpoints={endpoint.name: endpoint for endpoint in endpoints},
            )
        return cls(services=services)

    def find(self, service: str, endpoint: str) -> EndpointInfo | None:
        """Return an endpoint, or ``None`` if this catalogue has none of that name."""
        found = self.services.get(service)
        return found.endpoints.get(endpoint) if found else None

    def service(self, name: str) -> ServiceInfo:
        """Return a service.

        Raises
        ------
        AttributeError
            If there is none; the message lists what there is, the nearest first.
        """
        try:
            return self.services[name]
        except KeyError:
            raise AttributeError(unknown("the server has no service", name, self.services)) from None

    def names(self) -> list[str]:
        """Return every ``service.endpoint``, sorted."""
        return sorted(f"{info.name}.{name}" for info in self.services.values() for name in info.endpoints)


def unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    """Return a message about an unknown name that says what there is and what was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} {name!r}; there is: {', '.join(sorted(known)) or 'nothing'}.{hint}"
