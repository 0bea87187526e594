"""JSON: the stored form of numbers, lists, mappings, dataclasses and models (see
:mod:`~dask_fleet.codecs.json_values`).
"""

from __future__ import annotations

from typing import Any

from dask_fleet.codecs.json_text import read_json, write_json
from dask_fleet.codecs.json_values import from_json_value, to_json_value
from dask_fleet.plugins.codec import Codec

MEDIA_TYPE = "application/json"


class JSONCodec(Codec):
    """Takes what no other codec takes, and says what is wrong with it if it has no JSON form."""

    name = "json"
    media_type = MEDIA_TYPE
    order = 1000

    def takes(self, value: Any) -> bool:  # noqa: ARG002 - the last one asked
        """Whether this codec stores `value`: it tries."""
        return True

    def encode(self, value: Any) -> bytes:
        """Return JSON; see `Codec.encode`."""
        return write_json(to_json_value(value))

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value, with tagged floats restored."""
        return from_json_value(read_json(data))

    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:  # noqa: ARG002
        """Return ``None``: JSON is the stored form."""
        return None
