"""What the loader process found in a service: all that the server knows of a user's code."""

from __future__ import annotations

from typing import Any

import msgspec

from dask_fleet.model.jobs import Policy
from dask_fleet.model.placement import Placement

MANIFEST_FORMAT = 1


class EndpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One function as the API shows it."""

    name: str
    doc: str
    parameters: dict[str, Any]
    """JSON Schema (2020-12) of an object with one property a parameter, ``additionalProperties: false``;
    defaults are JSON values in the schema."""
    order: tuple[str, ...]
    """Parameter names as the signature has them, so that SDK and CLI take positional arguments."""
    returns: str
    """What it gives back, for people and the OpenAPI document: ``table``, ``array``, ``json``, ``text``, ``bytes``,
    ``figure``, ``dask``, ``any``."""
    result_schema: dict[str, Any] | None = None
    """JSON Schema of the result, where the return annotation tells one."""
    policy: Policy = Policy()
    placement: Placement = Placement()


class ServiceManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One service."""

    name: str
    doc: str
    version: str
    """``sha256`` over the service's own files and its declared version, 16 hexadecimal digits, prefixed by the declared
    version and a ``+`` if there is one."""
    target: str
    """The file or module that ``serve`` was given; what a worker loads."""
    endpoints: tuple[EndpointManifest, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All services of one server."""

    services: tuple[ServiceManifest, ...]
    format: int = MANIFEST_FORMAT
