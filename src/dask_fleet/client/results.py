"""From a result's bytes to the value, by the codecs: Arrow, NPY, JSON, text … and never pickle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from dask_fleet import codecs

JSON_MEDIA_TYPE = "application/json"
_DECODE_ON_LOOP_BYTES = 1 << 20
_NULL_BYTES = 4
_NOTHING = object()


def base_type(content_type: str) -> str:
    """Return a media type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


async def decode(content_type: str, body: bytes) -> Any:
    """Return the value; large ones are decoded beside the event loop."""
    media_type = base_type(content_type)
    if len(body) <= _DECODE_ON_LOOP_BYTES:
        return codecs.decode(media_type, body)
    return await asyncio.to_thread(codecs.decode, media_type, body)


def inline_value(document: Mapping[str, Any]) -> Any:
    """Return the value that a job document carries, or `NOTHING` if it must be fetched.

    Only a result that is stored as JSON is taken from there: of a table it shows a rendering that has lost its types.
    """
    if base_type(document.get("result_media_type") or "") != JSON_MEDIA_TYPE:
        return NOTHING
    value = document.get("result")
    if value is None and document.get("result_size") != _NULL_BYTES:
        return NOTHING  # too large to be carried; a result that *is* null has the four bytes of that word
    return codecs.decode(JSON_MEDIA_TYPE, json.dumps(value).encode())


NOTHING = _NOTHING
