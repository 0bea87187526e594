"""The server's side of parameters: strict, exact, and without the author's code."""

from __future__ import annotations

from typing import Any

from dask_fleet.codecs.strict_json import loads
from dask_fleet.model.canonical import canonical_bytes
from dask_fleet.model.errors import InvalidParameters
from dask_fleet.model.manifest import EndpointManifest
from dask_fleet.services.canonical_form import NumberTooLarge, compile_normaliser, validator
from dask_fleet.services.request_errors import ErrorFinder, summary_of


class RequestValidator:
    """Turns request bodies of one endpoint into canonical parameters. Make it once; it may be used from any
    thread.
    """

    def __init__(self, endpoint: EndpointManifest) -> None:
        schema = endpoint.parameters
        self._schema = schema
        self._is_valid = validator(schema).is_valid
        self._normalise = compile_normaliser(schema)
        self._finder: ErrorFinder | None = None

    def canonical(self, body: bytes) -> bytes:
        """Return the canonical bytes of the parameters in `body` (JSON; nothing at all stands for ``{}``).

        Two bodies that ask for the same give the same bytes: names in any order, white space, defaults
        written out or not, ``1`` or ``1.0`` where the schema says which it is. The bytes of a canonical form
        are their own canonical form.

        Raises
        ------
        BadJSON
            If the body is no JSON, or passes its limits.
        InvalidParameters
            If it does not fit the schema; ``extra["errors"]`` names each wrong field, at most 100.
        """
        return self.canonical_value(loads(body) if body else {})

    def canonical_value(self, value: Any) -> bytes:
        """Do the same for a value that is decoded already; hand it over, it is changed in place.

        Raises
        ------
        InvalidParameters
            See `canonical`.
        """
        if not self._is_valid(value):
            raise self._refusal(value)
        if self._normalise is not None:
            try:
                value = self._normalise(value)
            except NumberTooLarge as exc:
                errors = [{"loc": exc.loc, "msg": "must be at most about 1.8e308, the largest double", "type": "maximum"}]
                raise InvalidParameters(summary_of(errors), errors=errors) from None
        return canonical_bytes(value)

    def _refusal(self, value: Any) -> InvalidParameters:
        if self._finder is None:
            self._finder = ErrorFinder(self._schema)
        errors = self._finder.errors(value)
        return InvalidParameters(summary_of(errors), errors=errors)
